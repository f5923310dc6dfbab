"""The one rule of overwriting: what the same command would write again, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from morphogen.core.errors import InputError
from morphogen.core.output_files import check_folder, check_results, is_ours

NOW = {"model": "tissue", "strength": 0.4, "weights": "abc"}


def test_what_is_not_there_is_made(tmp_path: Path) -> None:
    assert not is_ours(tmp_path / "a.png", None, NOW)


def test_the_same_is_kept_and_the_same_command_makes_anew(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert is_ours(tmp_path / "a.png", dict(NOW), NOW)
    assert is_ours(tmp_path / "a.png", dict(NOW), NOW, overwrite=True)
    assert not is_ours(tmp_path / "a.png", {**NOW, "weights": "of yesterday"}, NOW)


def test_everything_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("mine")
    for found, says in ((None, "was not made by this command"), ({**NOW, "strength": 0.7}, "strength was 0.7, is 0.4")):
        with pytest.raises(InputError, match=says) as refused:
            is_ours(path, found, NOW)
        assert str(path) in str(refused.value)
        assert "--overwrite" in str(refused.value)
        assert not is_ours(path, found, NOW, overwrite=True)
    assert path.read_text() == "mine"


def test_many_differences_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    found = {f"setting_{k}": k for k in range(9)}
    with pytest.raises(InputError, match="setting 2 was 2, is -2; and 6 more"):
        is_ours(tmp_path / "a.png", found, {k: -v for k, v in found.items()} | {"setting_0": 0.5})


def test_links_and_folders_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"link\.png is there"):
        is_ours(tmp_path / "link.png", None, NOW)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder\.png is a folder"):
        is_ours(tmp_path / "folder.png", None, NOW, overwrite=True)
    with pytest.raises(InputError, match="a link to something that is not there"):
        check_folder(tmp_path / "link.png")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; name a folder"):
        check_folder(tmp_path / "file")
    check_folder(tmp_path / "new")


def test_results_of_several_files(tmp_path: Path) -> None:
    names, now = ("results.json", "report.html"), {"of": 1}

    def check(overwrite: bool = False) -> None:
        check_results(tmp_path, names, lambda found: {"of": found["of"]} if "of" in found else None, now, overwrite)

    check()
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(InputError, match=r"report\.html is there and was not made"):
        check()
    check(overwrite=True)
    for content, says in (("no json", "was not made"), ("{}", "was not made"), ('{"of": 2}', "of was 2, is 1")):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(InputError, match=says):
            check()
    (tmp_path / "results.json").write_text(json.dumps(now))
    check()
