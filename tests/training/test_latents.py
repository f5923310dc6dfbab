"""Training and sampling in latents: by an autoencoder of diffusers, and by a pair of ONNX files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_files import write_autoencoder
from PIL import Image
from run_helpers import Outcome, draw_images, snapshot
from safetensors.torch import load_file

from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.request import SamplingRequest
from morphogen.data.config import DataConfig, Domain
from morphogen.data.dataset import build_dataset
from morphogen.data.latents import LatentDataset, latents_of, measured, seconds_of
from morphogen.diffusion.latents import Codec, open_autoencoder
from morphogen.models import load_model
from morphogen.tasks.generate import generate
from morphogen.tasks.pipeline import Pipeline

Cli = Callable[..., Outcome]
TINY = (
    *("--size", "16", "--batch-size", "4", "--steps", "3", "--set", "training.saving.sample_images=2"),
    *("--set", "architecture.width=16", "--set", "architecture.heads=2", "--set", "architecture.nca_steps=2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL: 2x smaller, 4 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
    )
    path = tmp_path_factory.mktemp("autoencoders") / "kl"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("onnxruntime")
    return write_autoencoder(tmp_path_factory.mktemp("autoencoders") / "onnx")


def test_an_autoencoder_of_diffusers(folder: Path) -> None:
    from diffusers import AutoencoderKL

    found, theirs = open_autoencoder(str(folder)), AutoencoderKL.from_pretrained(folder).eval()
    assert (found.factor, found.channels, found.pixels, found.name) == (2, 4, 3, str(folder))
    images = torch.rand(2, 3, 12, 8) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(images).latent_dist.mean
        assert torch.allclose(found.encode(images), latents, atol=1e-5)
        assert torch.allclose(found.decode(latents), theirs.decode(latents).sample, atol=1e-5)


def test_an_autoencoder_of_two_onnx_files(pair: str) -> None:
    found = open_autoencoder(pair)
    assert (found.factor, found.channels, found.pixels, found.name) == (4, 5, 3, pair)
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    latents = found.encode(images)
    assert latents.shape == (2, 5, 2, 3)
    # Linear over [0, 1], so that half gray is half of white, and black is nothing.
    white, gray, black = (found.encode(torch.full((1, 3, 8, 8), v)) for v in (1.0, 0.0, -1.0))
    assert torch.allclose(gray, white / 2, atol=1e-6) and not black.any()
    decoded = found.decode(torch.zeros(1, 5, 2, 2))
    assert decoded.shape == (1, 3, 8, 8) and torch.allclose(decoded, torch.tensor(-1.0))


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "ways"), [("icons", 1), ("photo", 2), ("microscopy", 8)])
def test_latents_become_normal_and_come_back(
    images: Path, folder: Path, tmp_path: Path, domain: Domain, ways: int
) -> None:
    what = DataConfig(source=str(images), size=(16, 16), domain=domain, fit="crop")
    data = build_dataset(what, progress=False)
    autoencoder = open_autoencoder(str(folder))
    latents = latents_of(data, autoencoder, tmp_path, quiet=True)
    seconds = seconds_of(tmp_path)  # which count as time of the training
    assert seconds > 0
    assert (latents_of(data, autoencoder, tmp_path, quiet=True) == latents).all() and seconds_of(tmp_path) == seconds
    assert latents.shape == (10, ways, 4, 8, 8)
    config = measured(latents, autoencoder)
    coded, codec = LatentDataset(data, latents, config), Codec(config)
    seen = torch.stack([coded.fixed(i)[0] for i in range(len(coded))])
    found = {n: coded[n][0] for n in range(100 * ways)}  # so many that every image is there in every way
    for n, latent in found.items():  # what training sees: of the image as it would see it
        assert torch.allclose(codec.encode(data[n][0][None].float() / 127.5 - 1)[0], latent, atol=1e-4), n
    different = torch.stack(list({latent.numpy().tobytes(): latent for latent in found.values()}.values()))
    assert len(different) == 10 * ways
    values = different.transpose(0, 1).flatten(1)
    assert values.mean(dim=1).abs().max() < 1e-4 and (values.std(dim=1, correction=0) - 1).abs().max() < 1e-4
    kept = latents_of(data.other("val"), autoencoder, tmp_path / "val", quiet=True)
    assert kept.shape[1] == 1  # held-out images are not turned
    given = torch.stack([data.fixed(i)[0] for i in range(3)]).float() / 127.5 - 1
    assert torch.allclose(codec.encode(given), seen[:3], atol=1e-4)
    assert torch.allclose(codec.decode(seen[:3]), autoencoder.decode(latents[:3, 0]), atol=1e-4)
    with pytest.raises(IndexError):
        coded.fixed(10)


@pytest.fixture(scope="module")
def trained(images: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from morphogen.training.loop import train
    from morphogen.training.recipes import resolve

    assignments = [word for word in TINY if "=" in word]
    flags: dict[str, Any] = {
        "model": "geca-xs", "autoencoder": str(folder), "data": {"source": str(images), "size": 16},
        "training": {"steps": 3, "batch_size": 4},
    }  # fmt: skip
    out = tmp_path_factory.mktemp("runs") / "run"
    train(resolve(flags, None, assignments), out, quiet=True)
    return out


def test_a_run_in_latents(trained: Path, folder: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["image"] == {"height": 8, "width": 8, "channels": 4}
    assert config["latents"]["autoencoder"] == str(folder) and config["latents"]["factor"] == 2
    with Image.open(next((trained / "samples").glob("*.png"))) as sheet:
        assert sheet.size == (34, 16)  # two pictures of 16x16
    model = load_model(trained)
    assert (model.picture.height, model.picture.width, model.picture.channels) == (16, 16, 3)
    pictures = Pipeline(model)(seeds=[1, 2], num_inference_steps=3, output_type="np").images
    assert pictures.shape == (2, 16, 16, 3)
    assert Pipeline(model)(height=24, width=18, num_inference_steps=2, output_type="np").images.shape == (1, 24, 18, 3)


def test_what_is_sampled_is_decoded_and_not_clipped(trained: Path) -> None:
    from morphogen.diffusion.sampling import sample

    model = load_model(trained)
    key = Key.of([3])
    latents = sample(model, key, (8, 8), SamplingRequest(steps=4), clip=False)  # type: ignore[arg-type]
    assert torch.allclose(model.generate(key, request=SamplingRequest(steps=4)), model.to_pixels(latents), atol=1e-5)
    assert not torch.allclose(latents, sample(model, key, (8, 8), SamplingRequest(steps=4), clip=True), atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.slow
def test_latents_are_computed_once(trained: Path, images: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    command = ("train", images, "--model", "geca-xs", "--autoencoder", folder, "--out", run, *TINY)
    before = snapshot(run / "latents")
    assert cli(*command, "--steps", "4").code == 0
    assert snapshot(run / "latents") == before
    (shard,) = (run / "latents" / "train").glob("*.safetensors")
    whole = load_file(shard)["latents"].clone()
    said = json.loads((shard.parent / "fingerprint.json").read_text())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = cli(*command, "--steps", "5")
    assert done.code == 0 and "resuming" in done.err
    assert torch.equal(load_file(shard)["latents"], whole)
    (shard.parent / "fingerprint.json").write_text("{")
    assert cli(*command, "--steps", "6").code == 0
    again = json.loads((shard.parent / "fingerprint.json").read_text())
    assert again.pop("seconds") > 0 and said.pop("seconds") > 0  # which is of the clock
    assert again == said and shard.read_bytes() == content
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5, 6]


def test_another_autoencoder_or_other_images_are_not_resumed(
    trained: Path, images: Path, folder: Path, pair: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(trained, run)
    command = ("train", images, "--model", "geca-xs", "--out", run, *TINY, "--steps", "4")
    refused(*command, "--autoencoder", pair, says=["autoencoder was"])
    refused(*command, "--autoencoder", "none", says=["autoencoder was"])
    shutil.copytree(folder, other)
    weights = next(other.glob("*.safetensors"))
    from diffusers import AutoencoderKL

    changed = AutoencoderKL.from_pretrained(other)
    changed.decoder.conv_in.bias.data += 1
    changed.save_pretrained(other)
    assert weights.is_file()
    model = load_model(trained)
    assert model.latents is not None
    model.latents = model.latents.model_copy(update={"autoencoder": str(other)})
    with pytest.raises(InputError, match="is not the one that this model was trained with"):
        model.generate(Key.of([0]), request=SamplingRequest(steps=2))
    model.latents = model.latents.model_copy(update={"autoencoder": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="there is no such folder"):
        model.generate(Key.of([0]), request=SamplingRequest(steps=2))
    draw_images(tmp_path / "images", first=30)
    assert "not those" in refused(
        "train", tmp_path / "images", "--model", "geca-xs", "--autoencoder", folder, "--out", run, *TINY
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["diff-nca-small", "fourier-diff-nca-small"])
def test_other_models_work_in_latents(model: str, tmp_path: Path, pair: str, folder: Path, cli: Cli) -> None:
    data = draw_images(tmp_path / "images", size=64)
    size, autoencoder = ("64", str(folder)) if model.startswith("fourier") else ("16", pair)
    command = ("train", data, "--model", model, "--size", size, "--autoencoder", autoencoder, "--batch-size", "2")
    small = (
        "--set",
        "architecture.channels=16",
        "--set",
        "architecture.hidden=16",
        "--set",
        "architecture.nca_steps=2",
    )
    done = cli(*command, *small, "--steps", "2", "--out", tmp_path / "run", "--set", "training.saving.sample_images=1")
    assert done.code == 0, done.err
    done = cli("sample", tmp_path / "run", "--n", "2", "--sampling-steps", "2", "--film", "--out", tmp_path / "s")
    assert done.code == 0, done.err
    with Image.open(tmp_path / "s" / "0.png") as picture:
        assert picture.size == (int(size), int(size)) and np.asarray(picture).std() > 0
    assert cli("vary", tmp_path / "run", data / "00.png", "--out", tmp_path / "v", "--sampling-steps", "4").code == 0


def test_what_cannot_be(
    images: Path, folder: Path, pair: str, trained: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def train(*words: object, says: list[str]) -> None:
        keeps = (images,)
        refused("train", images, "--model", "geca-xs", "--out", tmp_path / "run", *words, says=says, keeps=keeps)
        assert not (tmp_path / "run").exists()

    def coded(reference: object, *words: object, says: list[str]) -> None:
        train("--size", "16", "--autoencoder", reference, *words, says=says)

    coded(pair, "--size", "18", says=["--size 18x18", "not divisible by 4", "encoder.onnx"])
    coded(pair, "--size", "8x10", says=["--size 8x10"])
    coded(folder, "--set", "data.colour=gray", says=["3 channels", "data.colour=rgb"])
    coded(folder, "--model", "vnca", says=["--autoencoder", "vnca"])
    coded(
        folder,
        "--model",
        "fourier-diff-nca-small",
        "--recipe",
        "paper",
        "--size",
        "32",
        says=["16x16 is too small", "latents"],
    )
    coded(tmp_path / "nowhere", says=["nowhere", "no such folder"])
    coded(images, says=["config.json"])
    coded("onnx:a.onnx", says=["onnx:ENCODER,DECODER"])
    coded(f"onnx:{tmp_path}/a.onnx,{tmp_path}/b.onnx", says=["a.onnx", "no such file"])
    encoder = pair.removeprefix("onnx:").split(",")[0]
    coded(f"onnx:{encoder},{encoder}", says=["onnx"])
    Image.new("RGB", (16, 9)).save(tmp_path / "odd.png")
    says = ["9x16 is not divisible by 2"]
    refused("inpaint", trained, tmp_path / "odd.png", "--box", "2,2,4,4", "--out", tmp_path / "i", says=says)
    with pytest.raises(InputError, match=r"9x16 is not divisible by 2"):
        list(generate(load_model(trained), [0], (9, 16), request=SamplingRequest(steps=2)))


def test_holes_are_filled_in_latents(trained: Path, images: Path, tmp_path: Path, cli: Cli) -> None:
    """Known pixels are put back after decoding, those in the hole are never seen, and only cells with a part in the
    hole are free.
    """
    picture = np.array(Image.open(images / "00.png").convert("RGB").resize((20, 16)))
    hole = np.zeros((16, 20), bool)
    hole[3:6, 5:12] = hole[15, 19] = True  # from odd to odd, across cells of 2x2 pixels
    other = np.where(hole[..., None], 255 - picture, picture)
    pipeline, told = Pipeline.from_pretrained(trained), []
    settings: dict[str, Any] = {"seeds": [1], "num_inference_steps": 3, "callback": told.append}
    filled, same = (pipeline.inpaint(p, hole, **settings).images[0] for p in (picture, other))
    np.testing.assert_array_equal(filled[~hole], picture[~hole])
    np.testing.assert_array_equal(filled, same)
    assert (filled[hole] != picture[hole]).mean() > 0.9
    cells = torch.zeros(8, 10, dtype=torch.bool)
    cells[1:3, 2:6] = cells[7, 9] = True
    first, second = told[0].images[0], told[1].images[0]
    assert torch.equal((first != second).any(dim=0), cells)
    assert (pipeline.inpaint(picture, hole, seeds=[2], num_inference_steps=3).images[0] != filled).any()
    arguments = ("--box", "3,5,3,7", "--sampling-steps", 2, "--film", "--out", tmp_path / "out")
    assert cli("inpaint", trained, images / "00.png", *arguments).code == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_latents_are_upscaled(trained: Path, images: Path) -> None:
    picture = np.array(Image.open(images / "00.png").convert("RGB").resize((12, 10)))
    pipeline = Pipeline.from_pretrained(trained)
    for factor in (2, 4):
        repeated = picture.repeat(factor, axis=0).repeat(factor, axis=1)
        large = pipeline.upscale(picture, factor, seeds=[1], num_inference_steps=3).images[0]
        assert large.shape == repeated.shape
        np.testing.assert_array_equal(large[::factor, ::factor], picture)
        assert (large != repeated).any(axis=2).mean() > 0.7 * (1 - 1 / factor**2)
        np.testing.assert_array_equal(pipeline.upscale(picture, factor, seeds=[1], noise=0.0).images[0], repeated)
    pulled, free = (
        pipeline.upscale(picture, seeds=[1], noise=0.5, blend=blend, num_inference_steps=4).images[0]
        for blend in (1.0, 0.0)
    )
    seen = pipeline.model.from_pixels(torch.from_numpy(repeated[::2, ::2].copy()).permute(2, 0, 1)[None] / 127.5 - 1)
    near = pipeline.model.to_pixels(seen)[0].permute(1, 2, 0).numpy() * 127.5 + 127.5  # as the autoencoder has it
    assert np.abs(pulled - near).mean() < np.abs(free - near).mean()
