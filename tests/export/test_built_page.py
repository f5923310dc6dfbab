"""The page in the package is what the sources in `web/` make."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEB, PAGE = ROOT / "web", ROOT / "src" / "morphogen" / "export" / "page"


def digest(folder: Path, names: list[str]) -> str:
    """As `web/build.mjs` has it."""
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return found.hexdigest()


def test_the_page_is_built_from_its_sources() -> None:
    said = json.loads((WEB / "built.json").read_text())
    sources = ["package.json", "package-lock.json", "tsconfig.json", "build.mjs"]
    sources += [
        f"{folder}/{path.name}" for folder in ("assembly", "src", "static") for path in (WEB / folder).iterdir()
    ]
    advice = "build the page again: cd web && npm ci && npm run build"
    assert said["sources"] == digest(WEB, sources), advice
    built = [path.name for path in PAGE.iterdir() if path.is_file()]
    assert said["built"] == digest(PAGE, built), advice
    assert sum((PAGE / name).stat().st_size for name in built) < 300_000


@pytest.mark.slow
def test_building_again_gives_the_same(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (WEB / "node_modules").is_dir():
        pytest.skip("the page's toolchain is not installed (cd web && npm ci)")
    subprocess.run([node, "node_modules/typescript/bin/tsc", "--noEmit", "-p", "."], cwd=WEB, check=True)
    subprocess.run([node, "build.mjs", str(tmp_path)], cwd=WEB, check=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in PAGE.iterdir()}
