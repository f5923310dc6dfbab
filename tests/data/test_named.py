"""CelebA and MedMNIST from small files in the real layout, and what is said where nothing can be downloaded."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.data.labels import checked_labels
from morphogen.data.sources import open_source


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MORPHOGEN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def celeba(root: Path) -> Path:
    """Six faces of CelebA's size in its folder, with its partition file."""
    images = root / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    lines = []
    for k in range(6):
        data = np.random.default_rng(k).integers(0, 256, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(data).save(images / f"{k + 1:06d}.jpg")
        lines.append(f"{k + 1:06d}.jpg {max(k - 3, 0)}")
    (images.parent / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return images


def test_celeba_in_its_folder(celeba: Path) -> None:
    dataset = build_dataset(DataConfig(source="celeba"), progress=False)
    assert dataset.counts == {"train": 4, "val": 1, "test": 1} and dataset.split == "official"
    assert dataset.fitting.domain == "faces" and dataset.fitting.fit == "crop"
    assert dataset[0][0].shape == (3, 64, 64)


def test_celeba_in_its_zip_is_the_same(celeba: Path) -> None:
    folder = build_dataset(DataConfig(source="celeba"), "test", progress=False)
    with zipfile.ZipFile(celeba.with_suffix(".zip"), "w") as archive:
        for file in sorted(celeba.iterdir()):
            archive.write(file, f"img_align_celeba/{file.name}")
            file.unlink()
    celeba.rmdir()
    inside = build_dataset(DataConfig(source="celeba"), "test", progress=False)
    assert (inside[0][0] == folder[0][0]).all()


def test_a_wrong_partition_line_is_named(celeba: Path) -> None:
    (celeba.parent / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg\n")
    with pytest.raises(InputError, match=r"list_eval_partition\.txt line 2 should be"):
        open_source(DataConfig(source="celeba"))


def test_celeba_says_what_to_put_where(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no route to host\nmore")

    monkeypatch.setattr(datasets, "CelebA", fail)
    with pytest.raises(InputError) as caught:
        open_source(DataConfig(source="celeba"))
    said = str(caught.value)
    assert str(root / "celeba") in said and "img_align_celeba.zip" in said and "https://" in said and "\n" not in said
    assert "no route to host" in said
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match=r'pip install "morphogen\[datasets\]"'):
        open_source(DataConfig(source="celeba"))


def npz(path: Path, side: int = 64, colour: bool = True, labels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shape = (side, side, 3) if colour else (side, side)
    arrays = {}
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 2, (count, labels), dtype=np.uint8)
    np.savez(path, **arrays)


def test_medmnist_from_its_file(root: Path) -> None:
    pytest.importorskip("medmnist")
    npz(root / "medmnist" / "pathmnist_64.npz")
    dataset = build_dataset(DataConfig(source="medmnist:pathmnist", domain="icons"), progress=False)
    assert dataset.counts == {"train": 6, "val": 2, "test": 3} and set(dataset.labels.names) <= {
        "adipose",
        "background",
    }
    with np.load(root / "medmnist" / "pathmnist_64.npz") as file:
        for i in range(6):
            image, label = dataset.fixed(i)
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), file["train_images"][i])
            assert dataset.labels.names[int(label.argmax())] == ("adipose", "background")[file["train_labels"][i, 0]]
    assert (pickle.loads(pickle.dumps(dataset))[4][0] == dataset[4][0]).all()


def test_the_classes_of_medmnist_are_no_folders(root: Path) -> None:
    pytest.importorskip("medmnist")
    npz(root / "medmnist" / "pathmnist.npz", 28)
    source = open_source(DataConfig(source="medmnist:pathmnist", size=28))
    assert checked_labels(source).names == tuple(sorted({r.label for r in source.records if r.label}))


def test_medmnist_gray_and_several_labels(root: Path) -> None:
    pytest.importorskip("medmnist")
    npz(root / "medmnist" / "chestmnist.npz", 28, colour=False, labels=14)
    dataset = build_dataset(DataConfig(source="medmnist:chestmnist", size=28), "test", progress=False)
    assert len(dataset) == 3 and not dataset.labels.names and dataset[0][0].shape == (3, 28, 28)
    gray = build_dataset(DataConfig(source="medmnist:chestmnist", size=28, colour="gray"), "test", progress=False)
    assert gray[0][0].shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("pathmist", 64, "'pathmist' is unknown; there are pathmnist, chestmnist"),
        ("organmnist3d", 64, "'organmnist3d' is three-dimensional"),
        ("pathmnist", 256, "at most 224"),
    ],
)
def test_wrong_medmnist_names(name: str, size: int, says: str) -> None:
    pytest.importorskip("medmnist")
    with pytest.raises(InputError, match=says):
        open_source(DataConfig(source=f"medmnist:{name}", size=size))


def test_medmnist_says_what_to_put_where(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("medmnist")

    def fail(**kwargs: Any) -> None:
        assert kwargs["size"] == 128 and kwargs["download"]
        raise RuntimeError("Something went wrong!\nLong story")

    monkeypatch.setattr(package, "BloodMNIST", fail)
    with pytest.raises(InputError) as caught:
        open_source(DataConfig(source="medmnist:bloodmnist", size=100))
    said = str(caught.value)
    assert "bloodmnist_128.npz" in said and str(root / "medmnist") in said and "https://zenodo.org" in said
    assert "\n" not in said


def test_a_file_that_is_no_medmnist(root: Path) -> None:
    pytest.importorskip("medmnist")
    path = root / "medmnist" / "pathmnist.npz"
    path.parent.mkdir()
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"pathmnist\.npz is not a MedMNIST file"):
        open_source(DataConfig(source="medmnist:pathmnist", size=28))


def test_without_medmnist_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(InputError, match=r'pip install "morphogen\[datasets\]"'):
        open_source(DataConfig(source="medmnist:pathmnist"))
