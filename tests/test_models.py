"""Models by name, their files, their use as plain modules, and the pipeline."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import morphogen
from morphogen.automata.diff_nca import DiffNCA
from morphogen.automata.fourier_diff_nca import FourierDiffNCA
from morphogen.core.errors import InputError
from morphogen.core.keys import Key
from morphogen.core.model import Batch, Model, StepInfo
from morphogen.core.request import SamplingRequest
from morphogen.models import PRESETS, build_model, create_model, find_model, load_model
from morphogen.tasks.generate import generate
from morphogen.tasks.pipeline import Pipeline, PipelineOutput

TINY: dict[str, Any] = {"channels": 8, "hidden": 12, "nca_steps": 2}


def tiny(name: str = "diff-nca-small", size: int | tuple[int, int] = 8, **settings: Any) -> Model:
    torch.manual_seed(0)
    return create_model(name, size=size, **(TINY | settings)).eval()


# ------------------------------------------------------------------------------------------------ create_model


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_created(name: str) -> None:
    with torch.device("meta" if name.startswith("unet") else "cpu"):  # some are large
        check_preset(name)


def check_preset(name: str) -> None:
    if name in ("vnca", "autoencoder"):  # square images for the one, and no diffusion
        model = create_model(name, size=32, image_channels=1)
        assert build_model(json.loads(json.dumps(model.config_dict())), "test").config_dict() == model.config_dict()
        return
    model = create_model(name, size=(40, 48), image_channels=1, diffusion={"timesteps": 50, "schedule": "linear"})
    assert (model.image.height, model.image.width, model.image.channels) == (40, 48, 1)
    assert model.diffusion.timesteps == 50  # type: ignore[attr-defined]
    assert isinstance(model, torch.nn.Module) and not isinstance(model, type)
    again = build_model(json.loads(json.dumps(model.config_dict())), "test")
    assert again.config_dict() == model.config_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "diff-nca-big"},
            "there is no model 'diff-nca-big'; choose one of diff-nca, diff-nca-small, diff-nca-p",
        ),
        ({"nca_step": 3}, "model 'diff-nca': architecture: there is no setting 'nca_step'; did you mean 'nca_steps'?"),
        (
            {"wings": 2},
            "model 'diff-nca': architecture: there is no setting 'wings'; known are label_dropout, drop_l",
        ),
        ({"channels": 3}, "architecture: channels: input should be greater than or equal to 4 (got 3)"),
        ({"channels": 5}, "channels is 5, but images of 3 channels need at least 6"),
        ({"fire_rate": 0.0}, "architecture: fire_rate: input should be greater than 0 (got 0.0)"),
        ({"fire_rate": 1.01}, "architecture: fire_rate: input should be less than or equal to 1 (got 1.01)"),
        ({"fire_rate": float("nan")}, "architecture: fire_rate: input should be"),
        ({"norm": "batch"}, "architecture: norm: input should be 'cell' or 'group' (got 'batch')"),
        ({"encoding": "linear"}, "architecture: encoding: input should be 'released' or 'sinusoidal'"),
        ({"nca_steps": 10**9}, "architecture: nca_steps: input should be less than or equal to 512"),
        ({"size": 1}, "image: height: input should be greater than or equal to 2 (got 1)"),
        ({"size": (64, 10**6)}, "image: width: input should be less than or equal to 16384 (got 1000000)"),
        ({"image_channels": 0}, "image: channels: input should be greater than or equal to 1 (got 0)"),
        ({"diffusion": {"timestep": 9}}, "diffusion: there is no setting 'timestep'; did you mean 'timesteps'?"),
        ({"diffusion": {"timesteps": 1}}, "diffusion: timesteps: input should be greater than or equal to 2 (got 1)"),
        ({"diffusion": {"schedule": "square"}}, "diffusion: schedule: input should be 'cosine', 'linear'"),
        (
            {"name": "fourier-diff-nca", "size": 31},
            "the size 31x31 is too small for FourierDiff-NCA: its window of 16x16",
        ),
        ({"name": "fourier-diff-nca", "size": (64, 31)}, "the size 64x31 is too small for FourierDiff-NCA"),
    ],
)
def test_create_model_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_model(**({"name": "diff-nca"} | arguments))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_package_offers_what_the_readme_names() -> None:
    assert morphogen.create_model is create_model
    assert morphogen.load_model is load_model
    assert morphogen.Pipeline is Pipeline
    assert morphogen.__version__
    with pytest.raises(AttributeError, match="nothing"):
        morphogen.nothing  # noqa: B018


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a tiny Diff-NCA."""
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["diff-nca", "diff-nca-paper", "fourier-diff-nca", "fourier-diff-nca-small"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    settings = {"fire_rate": 0.7, "encoding": "sinusoidal", "diffusion": {"output": "v", "timesteps": 77}}
    model = tiny(name, (32, 34), **settings)
    model.save_pretrained(tmp_path)
    for loaded in (load_model(tmp_path), load_model(str(tmp_path)), type(model).from_pretrained(tmp_path)):
        assert type(loaded) is type(model) and not loaded.training
        assert loaded.config_dict() == model.config_dict()
        wanted, found = model.state_dict(), loaded.state_dict()
        assert wanted.keys() == found.keys() and all(torch.equal(wanted[k], found[k]) for k in wanted)
        assert torch.equal(
            loaded.generate(Key.of([4]), request=SamplingRequest(steps=2)),
            model.generate(Key.of([4]), request=SamplingRequest(steps=2)),
        )
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_files_say_which_model_they_are_of(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["family"] == "diff-nca"
    assert config["architecture"] == {
        "label_dropout": 0.1,
        "drop_labels": "sample",
        "null_label": "own",
        "channels": 8,
        "hidden": 12,
        "nca_steps": 2,
        "fire_rate": 0.9,
        "sampling_fire_rate": None,
        "norm": "cell",
        "encoding": "released",
        "patch": 1,
        "embedding": None,
        "embedding_hidden": 256,
        "output_gain": 1.0,
    }
    assert set(config) == {"morphogen", "format", "family", "image", "architecture", "diffusion"}
    assert sum(t.numel() for t in load_file(saved / "model.safetensors").values()) == tiny().parameter_count()


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


def truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


class Bomb:
    """What runs code when it is unpickled: here, it leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def disguise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(folder / "exploded")))


def write_config(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.json").write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing weight": (
        edit_weights(lambda w: w.pop("rule.output.bias")),
        "model.safetensors lacks the weight 'rule.output.bias' of a diff-nca of its configuration",
    ),
    "extra weight": (
        edit_weights(lambda w: w.update(wings=torch.zeros(2))),
        "model.safetensors has a weight 'wings' that a diff-nca of its configuration does not",
    ),
    "wrong shape": (
        edit_weights(lambda w: w.update({"rule.output.bias": torch.zeros(9)})),
        "the weight 'rule.output.bias' has the shape (9,), but its configuration says (8,)",
    ),
    "truncated": (truncate, "model.safetensors is damaged or not a safetensors file"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is damaged or not a safetensors file"),
    "pickle in disguise": (disguise, "model.safetensors is damaged or not a safetensors file"),
    "header of 2**60 bytes": (
        lambda folder: (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        "is damaged or not a safetensors file",
    ),
    "other widths": (
        edit_config(lambda c: c["architecture"].update(channels=1024, hidden=8192)),
        "but its configuration says (1024, ",
    ),
    "absurd channels": (
        edit_config(lambda c: c["architecture"].update(channels=10**12)),
        "config.json: architecture: channels: input should be less than or equal to 1024 (got 1000000000000)",
    ),
    "absurd hidden": (
        edit_config(lambda c: c["architecture"].update(hidden=-5)),
        "config.json: architecture: hidden: input should be greater than or equal to 4 (got -5)",
    ),
    "absurd size": (
        edit_config(lambda c: c["image"].update(height=10**9)),
        "config.json: image: height: input should be less than or equal to 16384 (got 1000000000)",
    ),
    "absurd timesteps": (
        edit_config(lambda c: c["diffusion"].update(timesteps=10**9)),
        "config.json: diffusion: timesteps: input should be less than or equal to 10000",
    ),
    "no number": (
        edit_config(lambda c: c["architecture"].update(fire_rate=float("nan"))),
        "config.json: architecture: fire_rate: input should be",
    ),
    "unknown setting": (
        edit_config(lambda c: c["architecture"].update(hiden=5)),
        "config.json: architecture: there is no setting 'hiden'; did you mean 'hidden'?",
    ),
    "unknown table": (
        edit_config(lambda c: c.update(training={})),
        "config.json: there is no setting 'training'; known are family, image, architecture, diffusion",
    ),
    "no table": (edit_config(lambda c: c.update(image=3)), "config.json: image should be a table of settings, not 3"),
    "no family": (edit_config(lambda c: c.pop("family")), "config.json"),
    "other family": (edit_config(lambda c: c.update(family="fourier-diff-nca")), "config.json"),
    "unknown family": (edit_config(lambda c: c.update(family="gan")), "config.json"),
    "family of another kind": (edit_config(lambda c: c.update(family=["diff-nca"])), "config.json"),
    "list": (write_config(b"[1, 2]"), "config.json"),
    "null": (write_config(b"null"), "config.json"),
    "cut JSON": (write_config(b'{"family": "diff-nca", '), "config.json is not valid JSON"),
    "no text": (write_config(b"\xff\xfe\x00\x01"), "config.json is not valid JSON"),
    "deep JSON": (write_config(b'{"a":' * 100_000), "config.json is not valid JSON"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read: No such file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
}


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_model, DiffNCA.from_pretrained, Pipeline.from_pretrained])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models_are_refused(
    saved: Path, damage: str, load: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """By one clear sentence that names the file, however they are loaded, and without running what is in them."""
    spoil, message = DAMAGE[damage]
    spoil(saved)
    with pytest.raises(InputError) as caught:
        load(saved)
    assert message in str(caught.value) and str(saved) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not (saved / "exploded").exists()


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    tiny("fourier-diff-nca-small", 32).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config\.json describes no diff-nca"):
        DiffNCA.from_pretrained(tmp_path)
    assert isinstance(FourierDiffNCA.from_pretrained(tmp_path), FourierDiffNCA)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickles_are_refused_by_name(saved: Path, suffix: str) -> None:
    (saved / "model.safetensors").unlink()
    file = saved / f"pytorch_model.{suffix}"
    file.write_bytes(pickle.dumps(Bomb(saved / "exploded")))
    for reference in (saved, file):
        with pytest.raises(InputError) as caught:
            load_model(reference)
        assert str(caught.value) == (
            f"{file} is a pickle, which can run any code when opened; weights must be a model.safetensors"
        )
    assert not (saved / "exploded").exists()


def test_what_is_no_model_is_named(tmp_path: Path, saved: Path) -> None:
    def refused(reference: str | Path) -> str:
        with pytest.raises(InputError) as caught:
            find_model(reference)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "holds no model.safetensors" in refused(tmp_path / "empty")
    assert "has not saved a model yet" in refused(tmp_path / "run")
    assert "is a file; name the folder" in refused(saved / "config.json")
    assert "there is no run folder" in refused(tmp_path / "nowhere")
    assert "there is no run folder" in refused("no such model")
    assert "'diff-nca' is an untrained model; train one with `morphogen train DATA --model diff-nca`" in refused(
        "diff-nca"
    )


def test_saving_again_replaces(saved: Path) -> None:
    other = tiny(hidden=16)
    other.save_pretrained(saved)
    assert load_model(saved).config_dict() == other.config_dict()


# ------------------------------------------------------------------------------------------------ plain modules


@pytest.mark.parametrize("name", ["diff-nca-small", "diff-nca-paper", "fourier-diff-nca-small"])
def test_a_model_is_a_plain_module(name: str) -> None:
    model = tiny(name, 32)
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([50.0])
    copied = copy.deepcopy(model)
    restored = tiny(name, 32)
    with torch.no_grad():
        for parameter in restored.parameters():
            parameter += 1
        assert not torch.equal(restored(x, t).noise, model(x, t).noise)
    restored.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(copied(x, t).noise, model(x, t).noise)
        assert torch.equal(restored(x, t).noise, model(x, t).noise)
        next(copied.parameters()).zero_()
        assert next(model.parameters()).any(), "a copy shares nothing"
    assert model.device == torch.device("cpu")
    assert model.to("meta").device == torch.device("meta")
    assert copied.to(torch.float64).rule.output.weight_v.dtype == torch.float64  # type: ignore[union-attr]
    assert copied.train().training and not copied.requires_grad_(False).device.index


def test_a_pickled_module_works_as_any(tmp_path: Path) -> None:
    """Workers of a data loader or of `torch.multiprocessing` send modules so."""
    model = tiny()
    again = pickle.loads(pickle.dumps(model))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([50.0])
    with torch.no_grad():
        assert torch.equal(again(x, t).noise, model(x, t).noise)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diff-nca-small", "diff-nca-paper", "fourier-diff-nca-small"])
def test_training_lowers_the_loss(name: str) -> None:
    """On two images and fixed noise, by a fifth in 25 steps of Adam; predicting no noise at all is where it starts."""
    model = tiny(name, 32, hidden=32, fire_rate=1.0).train()
    batch, key = Batch(torch.rand(2, 3, 32, 32) * 2 - 1), Key.of([1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = model.training_loss(batch, key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# ------------------------------------------------------------------------------------------------ the pipeline

STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny())


def test_output_types(pipeline: Pipeline) -> None:
    pil, array, tensor = (pipeline(seeds=[1, 2], output_type=kind, **STEPS) for kind in ("pil", "np", "pt"))
    assert isinstance(pil, PipelineOutput) and pil.seeds == [1, 2]
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (8, 8) for image in pil.images)
    assert array.images.dtype == np.uint8 and array.images.shape == (2, 8, 8, 3)
    assert tensor.images.dtype == torch.float32 and tensor.images.shape == (2, 3, 8, 8)
    assert tensor.images.abs().max() <= 1
    assert np.array_equal(np.stack([np.asarray(image) for image in pil.images]), array.images)
    levels = ((tensor.images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert np.array_equal(levels.numpy(), array.images)


def test_gray_images() -> None:
    gray = Pipeline(tiny(image_channels=1))
    assert gray(seeds=[1], **STEPS).images[0].mode == "L"
    assert gray(seeds=[1], output_type="np", **STEPS).images.shape == (1, 8, 8, 1)


def test_height_and_width(pipeline: Pipeline) -> None:
    assert pipeline(height=6, width=10, **STEPS).images[0].size == (10, 6)
    assert pipeline(width=5, **STEPS).images[0].size == (5, 8)
    fourier = Pipeline(tiny("fourier-diff-nca-small", 32))
    assert fourier(height=35, width=33, num_inference_steps=1).images[0].size == (33, 35)


def test_seeds(pipeline: Pipeline) -> None:
    def images(**options: Any) -> np.ndarray:
        array: np.ndarray = pipeline(output_type="np", **STEPS, **options).images
        return array

    four = images(seeds=range(4))
    assert np.array_equal(four, images(seeds=iter([0, 1, 2, 3])))
    assert len({image.tobytes() for image in four}) == 4
    assert pipeline(seeds=np.array([2**40, 3]), **STEPS).seeds == [2**40, 3]
    assert np.array_equal(images(seeds=[1], num_images=1), images(seeds=[1]))


def test_generators_draw_seeds_only(pipeline: Pipeline) -> None:
    def run(count: int, seed: int) -> PipelineOutput:
        return pipeline(count, generator=torch.Generator().manual_seed(seed), output_type="np", **STEPS)

    once, again, other = run(3, 5), run(3, 5), run(3, 6)
    assert once.seeds == again.seeds and np.array_equal(once.images, again.images)
    assert not set(once.seeds) & set(other.seeds)
    assert np.array_equal(pipeline(seeds=once.seeds, output_type="np", **STEPS).images, once.images)
    generator = torch.Generator().manual_seed(5)
    first, second = (pipeline(1, generator=generator, **STEPS).seeds for _ in range(2))
    assert first != second, "a generator goes on"


def test_without_seeds_images_are_new_each_time(pipeline: Pipeline) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = pipeline(**STEPS)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    torch.manual_seed(0)
    second = pipeline(**STEPS)
    assert len(first.images) == 1 and first.seeds != second.seeds


@settings(max_examples=15, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), batch_size=st.integers(1, 7))
def test_the_batch_size_does_not_change_the_images(seeds: list[int], batch_size: int) -> None:
    """At most one grey level: kernels may sum in another order for another batch."""
    pipeline = Pipeline(tiny())
    whole = pipeline(seeds=seeds, output_type="np", **STEPS).images.astype(int)
    parts = pipeline(seeds=seeds, batch_size=batch_size, output_type="np", **STEPS).images
    assert parts.shape == (len(seeds), 8, 8, 3)
    assert np.abs(whole - parts).max() <= 1


def test_callback_is_told_of_every_step_of_every_batch(pipeline: Pipeline) -> None:
    told: list[StepInfo] = []
    pipeline(seeds=range(5), batch_size=2, num_inference_steps=3, callback=told.append)
    assert [(p.step, p.steps, len(p.images)) for p in told] == [
        (step, 3, size) for size in (2, 2, 1) for step in (1, 2, 3)
    ]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samplers_by_name(pipeline: Pipeline, sampler: str) -> None:
    assert len(pipeline(2, sampler=sampler, **STEPS).images) == 2


def test_the_model_is_put_into_evaluation_mode_and_moved() -> None:
    pipeline = Pipeline(tiny().train())
    assert not pipeline.model.training
    assert pipeline.to("cpu") is pipeline


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "there are no seeds; give at least one"),
        ({"seeds": [3, -1]}, "seed -1 is outside 0..18446744073709551615"),
        ({"seeds": [0.5]}, r"seeds are integers in 0..18446744073709551615, not [0.5]"),
        ({"seeds": [1, 2], "num_images": 3}, "num_images is 3, but there are 2 seeds"),
        ({"num_images": 0}, "the number of images is 0; it should be at least 1"),
        ({"num_images": -2}, "the number of images is -2; it should be at least 1"),
        ({"height": 1}, "the size 1x8 is too small: diff-nca needs at least 2 on each side"),
        ({"width": 0}, "the size 8x0 is too small"),
        ({"height": -8}, "the size -8x8 is too small"),
        ({"num_inference_steps": 0}, "sampling steps is 0, but this model has timesteps for 1 to 300"),
        ({"num_inference_steps": 301}, "sampling steps is 301, but this model has timesteps for 1 to 300"),
        ({"sampler": "fast"}, "there is no sampler 'fast'; choose one of ddpm, ddim"),
        ({"batch_size": 0}, "the batch size is 0; it should be at least 1"),
        ({"batch_size": -3}, "the batch size is -3; it should be at least 1"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'; it should be pil, np or pt"),
    ],
)
def test_pipeline_errors(pipeline: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        pipeline(**(STEPS | options))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_bad_seed_is_named_before_the_first_batch(pipeline: Pipeline) -> None:
    told: list[StepInfo] = []
    with pytest.raises(InputError, match="seed -1 is outside"):
        list(generate(pipeline.model, [1, 2, -1], request=SamplingRequest(steps=1), batch_size=1, callback=told.append))
    assert not told


def test_from_pretrained(saved: Path) -> None:
    a = Pipeline.from_pretrained(saved)(seeds=[7], output_type="np", **STEPS).images
    b = Pipeline(tiny())(seeds=[7], output_type="np", **STEPS).images
    assert np.array_equal(a, b)
