"""`train --autoencoder learn:FACTOR`: an autoencoder learnt first, a denoiser in its latents, and the model of both."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import ForkServer, Outcome, assert_same_run, until
from safetensors.torch import load_file

from morphogen.core.images import to_float
from morphogen.core.model import ImageConfig
from morphogen.data.config import DataConfig
from morphogen.data.dataset import build_dataset
from morphogen.data.latents import MEASURED, EncodedDataset, is_endless
from morphogen.diffusion.latents import OwnAutoencoder, weights_hash
from morphogen.diffusion.learned_autoencoder import AutoencoderConfig, LearnedAutoencoder
from morphogen.diffusion.predictor import NoisePredictor
from morphogen.models import load_model
from morphogen.tasks.pipeline import Pipeline

Cli = Callable[..., Outcome]
SETTINGS = (
    *("architecture.channels=24", "architecture.hidden=16", "architecture.nca_steps=2"),
    *("latents.width=8", "latents.blocks=1", "latents.share=0.5"),
    *("training.saving.sample_images=0", "training.saving.checkpoint_every=5", "training.saving.validate_every=5"),
)
TINY = ("--size", "16", "--batch-size", "4", *(word for setting in SETTINGS for word in ("--set", setting)))


def train_words(images: Path, out: Path, *words: object, autoencoder: object = "learn:4") -> tuple[object, ...]:
    return ("train", images, "--out", out, "--autoencoder", autoencoder, *TINY, *words)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Path:
    """A run of 40 steps after 20 of its autoencoder, uninterrupted."""
    out = tmp_path_factory.mktemp("learned") / "whole"
    done = forks.run(*train_words(images, out, "--steps", 40))
    assert done.code == 0, done.err
    return out


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reach_is_exact(factor: Any) -> None:
    """Every pixel that a latent cell changes, and every cell that a pixel changes, lies within the stated reach; and
    the farthest lie at it.
    """
    torch.manual_seed(0)
    model = LearnedAutoencoder(ImageConfig(height=8, width=8), AutoencoderConfig(factor=factor, width=8, blocks=2))
    model.double()  # so that a change far away is not lost in rounding
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    cells = 2 * max(model.decoder_reach, -(-model.encoder_reach // factor)) + 5
    latents = torch.zeros(1, model.channels, 1, cells, dtype=torch.float64).repeat(1, 1, cells, 1)
    middle = cells // 2
    with torch.no_grad():
        before = model.decode(latents)
        latents[:, :, middle, middle] += 100
        changed = (model.decode(latents) != before).any(dim=1)[0]
        rows = [int(row) // factor - middle for row in changed.any(dim=1).nonzero()]
        assert (min(rows), max(rows)) == (-model.decoder_reach, model.decoder_reach)
        first, last = [], []
        for offset in range(factor):  # of the pixel in its cell
            pixels = torch.zeros(1, 3, cells * factor, cells * factor, dtype=torch.float64)
            before = model.encode(pixels)
            pixels[:, :, middle * factor + offset, middle * factor + offset] += 100
            changed = (model.encode(pixels) != before).any(dim=1)[0]
            found = changed.any(dim=1).nonzero().flatten()
            first.append(middle * factor + offset - (int(found.min()) * factor + factor - 1))  # below a cell's own
            last.append(int(found.max()) * factor - (middle * factor + offset))  # above a cell's own
    assert max(*first, *last) == model.encoder_reach


def test_an_image_decodes_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    model = LearnedAutoencoder(ImageConfig(height=16, width=16), AutoencoderConfig(width=16, blocks=1)).eval()
    own = OwnAutoencoder(model, "learn:4")
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):  # it has no say
        latents = own.encode(images)
    assert latents.dtype == torch.float32 and latents.shape == (5, 8, 4, 4)
    together = own.decode(latents)
    for i in range(5):
        assert torch.equal(own.encode(images[i : i + 1])[0], latents[i])
        assert torch.equal(own.decode(latents[i : i + 1])[0], together[i])
    assert own.identity == weights_hash(model) != weights_hash(LearnedAutoencoder(model.image, model.architecture))


def test_blocks_are_decoded_as_the_whole() -> None:
    """Up to rounding (1e-4 of the pixels' deviation; a reach of one cell less is off by far more)."""
    torch.manual_seed(0)
    model = LearnedAutoencoder(ImageConfig(height=16, width=16), AutoencoderConfig(factor=2, width=8, blocks=1))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    latents = torch.randn(2, 4, 70, 75)
    with torch.no_grad():
        whole = model.decode(latents)
    found = OwnAutoencoder(model, "learn:2").decode(latents)
    assert found.shape == whole.shape
    assert (found - whole).abs().max() < 1e-4 * whole.std()


def test_it_learns() -> None:
    from morphogen.core.keys import Key
    from morphogen.core.model import Batch

    torch.manual_seed(0)
    model = LearnedAutoencoder(ImageConfig(height=16, width=16), AutoencoderConfig(width=16, blocks=1))
    images = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, size=(16, 16), mode="bilinear")
    optimizer, losses = torch.optim.Adam(model.parameters(), 4e-3), []
    for step in range(60):
        loss = model.training_loss(Batch(images), Key.of(range(8 * step, 8 * step + 8)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3  # 0.53 -> 0.12 when this was written
    latents = model.encode(images).detach()
    assert latents.std() > 0.3  # as the prior wants, far from nothing


def test_the_run_and_its_two_files(whole: Path, tmp_path: Path) -> None:
    first = [json.loads(line) for line in (whole / "autoencoder" / "metrics.jsonl").read_text().splitlines()]
    second = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert (first[-1]["step"], second[-1]["step"]) == (20, 40)
    assert (first[-1]["images"], second[-1]["images"]) == (20 * 16, 40 * 4)
    assert [r["step"] for r in first if "held_out_reconstruction_error" in r] == [5, 10, 15, 20]
    assert "levels of 0 to 255" in (whole / "autoencoder" / "README.md").read_text()
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(whole / name, alone / name)
    model, learnt = load_model(alone), load_file(whole / "autoencoder" / "model.safetensors")
    weights = load_file(alone / "model.safetensors")
    kept = {n.removeprefix("autoencoder."): w for n, w in weights.items() if n.startswith("autoencoder.")}
    assert kept.keys() == learnt.keys()
    assert all(torch.equal(kept[name], learnt[name]) for name in kept)  # training moved none of them
    assert model.latents is not None and model.latents.autoencoder == "learn:4"
    assert isinstance(model, NoisePredictor) and model.autoencoder is not None
    assert model.latents.sha256 == weights_hash(model.autoencoder)
    assert model.parameter_count() == sum(w.numel() for w in weights.values()) - model.autoencoder_parameters()
    images = Pipeline(model)(seeds=[1, 2], num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()
    again = Pipeline(model)(seeds=[2], num_inference_steps=3, output_type="np").images
    np.testing.assert_array_equal(images[1], again[0])


def test_tasks_in_learnt_latents(whole: Path, images: Path) -> None:
    picture = np.array(Image.open(images / "00.png").convert("RGB").resize((16, 16)))
    hole = np.zeros((16, 16), bool)
    hole[3:9, 5:12] = True
    pipeline = Pipeline.from_pretrained(whole)
    filled = pipeline.inpaint(picture, hole, seeds=[1], num_inference_steps=3).images[0]
    np.testing.assert_array_equal(filled[~hole], picture[~hole])
    assert (filled[hole] != picture[hole]).mean() > 0.5
    large = pipeline.upscale(picture, 2, seeds=[1], num_inference_steps=3).images[0]
    np.testing.assert_array_equal(large[::2, ::2], picture)
    assert pipeline.vary(picture, seeds=[1], num_inference_steps=3).images[0].shape == picture.shape


def test_info_counts_it_apart(whole: Path, cli: Cli) -> None:
    facts = json.loads(cli("info", whole, "--json").out)
    own = json.loads(cli("info", whole / "autoencoder", "--json").out)
    assert facts["autoencoder"] == own["autoencoder"]
    assert facts["autoencoder"]["parameters"] == own["parameters"] > 0
    assert facts["autoencoder"]["decoder_reach_cells"] == 5 and facts["autoencoder"]["encoder_reach_pixels"] == 16
    weights = load_file(whole / "model.safetensors")
    assert facts["parameters"] == sum(w.numel() for w in weights.values()) - own["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["autoencoder", "."])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_in_either_phase_changes_no_bit(
    whole: Path, images: Path, tmp_path: Path, forks: ForkServer, phase: str, how: signal.Signals
) -> None:
    run = tmp_path / "run"
    words = train_words(images, run, "--steps", 40)
    process = forks.start(*words)
    until(lambda: list((run / phase / "checkpoints").glob("step-00000005")))
    process.send(how)
    assert process.wait() == (3 if how == signal.SIGTERM else -how)
    steps = len((run / phase / "metrics.jsonl").read_text().splitlines())
    assert steps < (20 if phase == "autoencoder" else 40)
    assert (phase == ".") == (run / "metrics.jsonl").exists()
    done = forks.run(*words)
    assert done.code == 0, done.err
    assert f"resuming {run / phase}" in done.err
    assert_same_run(whole / "autoencoder", run / "autoencoder")
    assert_same_run(whole, run)


@pytest.mark.slow
def test_a_longer_run_goes_on_in_the_same_latents(
    whole: Path, images: Path, tmp_path: Path, cli: Cli, refused: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    assert cli(*train_words(images, run, "--steps", 6)).code == 0
    before = (run / "autoencoder" / "model.safetensors").read_bytes()
    done = cli(*train_words(images, run, "--steps", 8))
    assert done.code == 0 and f"resuming {run} at step 6" in done.err
    assert (run / "autoencoder" / "model.safetensors").read_bytes() == before
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8
    refused(*train_words(images, run, "--set", "latents.width=16"), says=["latents.width was 8"])
    refused(*train_words(images, run, autoencoder="learn:2"), says=["autoencoder was 'learn:4'"])
    shutil.rmtree(run / "autoencoder")
    refused(*train_words(images, run, "--steps", 9), says=["lacks the autoencoder"])


def test_time_is_shared(images: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    done = cli(*train_words(images, run, "--minutes", "0.05"))
    assert done.code == 0, done.err
    first, second = (
        json.loads(max((run / part / "checkpoints").glob("step-*/facts.json")).read_text())["elapsed_s"]
        for part in ("autoencoder", ".")
    )
    assert 1.0 <= first < 3  # half of three seconds, but for the step that would end after it
    assert 1.0 <= second < 3  # the rest, likewise; not all three again


@pytest.mark.slow
def test_a_learnt_autoencoder_serves_other_runs(
    whole: Path, images: Path, tmp_path: Path, cli: Cli, refused: Callable[..., str]
) -> None:
    plain = tuple(word for setting in SETTINGS if not setting.startswith("latents") for word in ("--set", setting))
    same = ("train", images, "--size", "16", "--batch-size", "4", "--steps", "2", *plain)
    run = tmp_path / "by-folder"
    done = cli(*same, "--out", run, "--autoencoder", whole / "autoencoder")
    assert done.code == 0, done.err
    started = tmp_path / "by-start"
    done = cli(*train_words(images, started, "--steps", 2, "--init", whole))
    assert done.code == 0, done.err
    identities = {load_model(path).latents.sha256 for path in (whole, run, started)}  # type: ignore[union-attr]
    assert len(identities) == 1
    assert not (started / "autoencoder" / "metrics.jsonl").exists()  # nothing was learnt again
    done = cli(*train_words(images, started, "--steps", 3, "--init", whole))
    assert done.code == 0, done.err
    says = ["--init", "in the latents of learn:4", "learn:2"]
    refused(*train_words(images, tmp_path / "no", "--init", whole, autoencoder="learn:2"), says=says)
    refused(
        *train_words(images, tmp_path / "no", "--init", "tissue-texture"),
        says=["--init tissue-texture works in pixels"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("endless", [("--fit", "random"), ("--stain-jitter", "0.05", "--set", "data.fit=crop")])
def test_crops_and_stains_without_end_are_encoded_as_they_come(
    images: Path, tmp_path: Path, cli: Cli, endless: tuple[str, ...]
) -> None:
    learnt, one, other = tmp_path / "learnt", tmp_path / "one", tmp_path / "other"
    plain = tuple(word for setting in SETTINGS if not setting.startswith("latents") for word in ("--set", setting))
    words = ("train", images, "--size", "16", "--batch-size", "4", *plain, *endless)
    done = cli(*train_words(images, learnt, *endless, "--steps", 8))
    assert done.code == 0, done.err
    for steps, run in ((8, one), (4, other), (8, other)):
        done = cli(*words, "--out", run, "--autoencoder", learnt / "autoencoder", "--steps", steps)
        assert done.code == 0, done.err
        assert not (run / "latents").exists()
    assert_same_run(one, other)
    model = load_model(learnt)
    assert isinstance(model, NoisePredictor) and model.autoencoder is not None
    config = DataConfig.model_validate(json.loads((learnt / "run.json").read_text())["data"])
    data = build_dataset(config, seed=json.loads((learnt / "run.json").read_text())["training"]["seed"], progress=False)
    assert is_endless(data)
    coded = EncodedDataset(data, OwnAutoencoder(model.autoencoder, "learn:4"), model.latents)  # type: ignore[arg-type]
    seen = torch.stack([coded[n][0] for n in range(MEASURED)])
    values = seen.transpose(0, 1).flatten(1)
    assert values.mean(dim=1).abs().max() < 1e-3 and (values.std(dim=1) - 1).abs().max() < 1e-3
    for n in (3, 700):  # each the latent of the crop that training would see of pixels
        assert torch.allclose(coded[n][0], model.from_pixels(to_float(data[n][0][None]))[0], atol=1e-4)
    assert not torch.equal(coded[3][0], coded[3 + len(data)][0])


def test_what_cannot_be(whole: Path, images: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    def learn(*words: object, says: list[str], autoencoder: str = "learn:4") -> None:
        refused(*train_words(images, tmp_path / "run", *words, autoencoder=autoencoder), says=says, keeps=(images,))
        assert not (tmp_path / "run").exists()

    for factor in ("3", "16", "", "four"):
        learn(autoencoder=f"learn:{factor}", says=[f"learn:{factor}", "2, 4 or 8"])
    learn("--size", "18", says=["--size 18x18", "not divisible by 4"])
    learn("--size", "8", autoencoder="learn:8", says=["--size 8x8", "too small"])
    learn("--set", "latents.widht=8", says=["latents.widht", "did you mean"])
    learn("--set", "latents.share=1", says=["latents.share"])
    learn("--set", "architecture.channels=8", says=["channels is 8"])
    vnca = ("train", images, "--size", "16", "--out", tmp_path / "run", "--autoencoder", "learn:4")
    refused(*vnca, "--model", "vnca", says=["vnca works in pixels only"])
    pixels = ("train", images, "--size", "16", "--out", tmp_path / "run", "--set", "latents.width=8")
    refused(*pixels, says=["latents", "--autoencoder learn:4"])
    refused("sample", whole / "autoencoder", "--out", tmp_path / "s", says=["autoencoder", "paints nothing"])
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(whole / "model.safetensors", broken)
    config = json.loads((whole / "config.json").read_text())
    config["latents"]["learned"]["factor"] = 2
    (broken / "config.json").write_text(json.dumps(config))
    refused("sample", broken, "--out", tmp_path / "s", says=["config.json", "factor"])
