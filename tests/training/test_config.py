"""Configurations: where settings come from, which wins, what is refused and how it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from morphogen.core.errors import InputError
from morphogen.models import build_model, create_model
from morphogen.training.config import (
    MAY_CHANGE,
    LatentsConfig,
    LevelsConfig,
    RunConfig,
    SavingConfig,
    TrainingConfig,
    differences,
    flatten,
)
from morphogen.training.recipes import RECIPES, resolve
from morphogen.training.settings import merge, parse_assignment

DATA = {"data": {"source": "faces"}}


def written(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values) if path.suffix == ".yaml" else json.dumps(values))
    return path


def test_recipe_then_file_then_flags_then_assignments(tmp_path: Path) -> None:
    file = written(
        tmp_path / "c.yaml",
        {"training": {"learning_rate": 0.1, "seed": 1, "batch_size": 2, "warmup": 7}, "recipe": "paper"},
    )
    flags = {**DATA, "training": {"seed": 2, "batch_size": 3}}
    found = resolve(flags, file, ["training.batch_size=5"])
    assert found.recipe == "paper"
    assert found.training.averaging.kind == "constant"  # by the recipe
    assert (found.training.optimizer.learning_rate, found.training.schedule.warmup) == (
        0.1,
        7,
    )  # by the file, over the recipe
    assert found.training.seed == 2  # by the flags, over the file
    assert found.training.batch_size == 5  # by the assignment, over the flags
    assert resolve({**flags, "recipe": "default"}, file).training.averaging.kind == "relative"


def test_the_documented_order(tmp_path: Path) -> None:
    """Field, recipe, preset, file, flag, --set: a setting that all of them give, and each that the later ones leave."""
    file = written(tmp_path / "c.yaml", {"training": {"optimizer": {"epsilon": 1e-7}, "batch_size": 4}})
    flags = {**DATA, "model": "unet-s", "recipe": "paper"}
    plain = resolve(flags).training
    assert plain.saving == SavingConfig()  # by the fields: nobody else says anything
    assert (
        plain.steps == RECIPES["paper"]["training"]["steps"] != TrainingConfig.model_fields["steps"].default
    )  # by the recipe
    assert plain.optimizer.learning_rate == 3e-5 != RECIPES["paper"]["training"]["optimizer"]["learning_rate"]  # preset
    assert (plain.optimizer.epsilon, plain.batch_size) == (1e-6, 32)  # by the preset, over the recipe and the field
    by_file = resolve(flags, file).training
    assert (by_file.optimizer.epsilon, by_file.batch_size) == (1e-7, 4)  # by the file, over the preset
    assert by_file.optimizer.learning_rate == 3e-5
    by_flag = {**flags, "training": {"batch_size": 5}}
    assert resolve(by_flag, file).training.batch_size == 5
    assert resolve(by_flag, file, ["training.batch_size=6"]).training.batch_size == 6


def test_the_kernel_is_switched_off_although_yaml_takes_off_for_false(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training:\n  kernel: off\n")
    assert resolve(DATA, tmp_path / "c.yaml").training.devices.kernel == "off"
    assert resolve(DATA, None, ["training.devices.kernel=off"]).training.devices.kernel == "off"
    with pytest.raises(InputError, match="auto"):
        resolve(DATA, None, ["training.devices.kernel=on"])


def test_another_recipe_than_that_of_a_whole_file_is_refused(tmp_path: Path) -> None:
    """The file's settings would hide those of the recipe that was asked for."""
    file = written(tmp_path / "run.json", resolve({**DATA, "recipe": "paper"}).model_dump(mode="json"))
    assert resolve({**DATA, "recipe": "paper"}, file).recipe == "paper"
    with pytest.raises(InputError, match=r"run\.json is of the recipe 'paper'"):
        resolve({**DATA, "recipe": "default"}, file)


def test_later_assignments_win() -> None:
    assert resolve(DATA, None, ["training.seed=1", "training.seed=2"]).training.seed == 2


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("paper", {"diffusion.timesteps": 300, "diffusion.schedule": "cosine", "diffusion.loss": "mse+l1"}),
        ("paper", {"diffusion.output": "noise", "diffusion.loss_on": "noise"}),
        ("paper", {"training.optimizer.learning_rate": 1.6e-3}),
        ("paper", {"training.optimizer.betas": [0.9, 0.99], "training.optimizer.epsilon": 1e-8}),
        ("paper", {"training.schedule.decay": "exponential", "training.schedule.decay_rate": 0.9999}),
        ("paper", {"training.batch_size": 16, "training.steps": 200_000, "training.averaging.decay": 0.99}),
        ("paper", {"training.optimizer.name": "adam", "training.schedule.warmup": 0}),
        ("paper", {"training.optimizer.clip_gradient": None, "training.averaging.kind": "constant"}),
        ("default", {"training.steps": 10_000, "training.batch_size": 8, "training.optimizer.name": "adam"}),
    ],
)
def test_the_recipes(recipe: str, wanted: dict[str, Any]) -> None:
    flat = flatten(resolve({**DATA, "recipe": recipe}).model_dump(mode="json"))
    assert {name: flat[name] for name in wanted} == wanted


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_written_configuration_reads_as_the_same(tmp_path: Path, recipe: str) -> None:
    flags = {**DATA, "recipe": recipe, "model": "fourier-diff-nca-small"}
    first = resolve(
        flags, None, ["architecture.channels=16", "training.optimizer.clip_gradient=0.5", "data.size=32x48"]
    )
    file = written(tmp_path / "run.json", first.model_dump(mode="json"))
    assert resolve({}, file) == first
    assert differences(first, resolve(DATA, file)) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("0.5", 0.5), ("3", 3), ("-2", -2), ("true", True), ("false", False),
        ("null", None), ("~", None), ("cosine", "cosine"), ("64x96", "64x96"), ("[0.9, 0.99]", [0.9, 0.99]),
        ("none", "none"), ("#ff0000", "#ff0000"), ("'#ff0000'", "#ff0000"), ("a=b", "a=b"), ("'12'", "12"), (" 5 ", 5),
        ("/data/set #2", "/data/set #2"), ("", None),
        ("/data/my images", "/data/my images"), ("{a: 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_values_of_assignments(text: str, value: object) -> None:
    path, found = parse_assignment(f"training.some_thing={text}")
    assert path == ["training", "some_thing"]
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_way_to_write_a_number_is_a_number(number: float) -> None:
    for text in (repr(number), f"{number:e}", f"{number:g}"):
        assert parse_assignment(f"a={text}")[1] == float(text)


@pytest.mark.parametrize(
    "text", ["training.seed", "=3", ".seed=3", "training..seed=3", "a=[1", "a={", "a=@", "a=2024-13-45"]
)
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(InputError) as refusal:
        resolve(DATA, None, [text])
    assert f"--set {text}" in str(refusal.value)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("training.learning_rat=1", ["training.learning_rat'", "did you mean 'training.optimizer.learning_rate'"]),
        ("training.lr=1", ["training.lr'", "did you mean 'training.optimizer.learning_rate'"]),
        ("learning_rate=1", ["'learning_rate'", "did you mean 'training.optimizer.learning_rate'"]),
        ("optimiser.lr=1", ["'optimiser'", "did you mean 'training.optimizer'"]),
        ("nca_steps=3", ["'nca_steps'", "did you mean 'architecture.nca_steps'"]),
        ("architecture.nca_step=3", ["'architecture.nca_step'", "did you mean 'architecture.nca_steps'"]),
        ("batch=3", ["'batch'", "did you mean 'training.batch_size'"]),
        ("training.optimizer.steps=3", ["'training.optimizer.steps'", "did you mean 'training.steps'"]),
        ("training.xyzzy=1", ["training.xyzzy'", "known are steps, minutes"]),
        ("trainign.seed=1", ["trainign", "training"]),
        ("diffusion.timestep=9", ["diffusion.timestep'", "did you mean 'diffusion.timesteps'"]),
        ("data.sise=9", ["data.sise'", "did you mean 'data.size'"]),
        ("data.size.height=9", ["data.size"]),
        ("training.optimizer.learning_rate=0", ["training.optimizer.learning_rate", "greater than 0"]),
        ("training.optimizer.learning_rate=2", ["training.optimizer.learning_rate", "less than or equal to 1"]),
        ("training.optimizer.learning_rate=fast", ["training.optimizer.learning_rate", "number"]),
        ("training.optimizer.learning_rate=nan", ["training.optimizer.learning_rate"]),
        ("training.steps=0", ["training.steps"]),
        ("training.steps=1.5", ["training.steps"]),
        ("training.steps=-1", ["training.steps"]),
        ("training.minutes=0", ["training.minutes"]),
        ("training.batch_size=0", ["training.batch_size"]),
        ("training.batch_size=100000", ["training.batch_size"]),
        ("training.seed=-1", ["training.seed"]),
        ("training.seed=18446744073709551616", ["training.seed"]),
        ("training.optimizer.betas=[0.9]", ["training.optimizer.betas"]),
        ("training.optimizer.betas=[1.5, 0.9]", ["training.optimizer.betas", "less than 1"]),
        ("training.optimizer.betas=[0.9, -0.1]", ["training.optimizer.betas"]),
        ("training.averaging.decay=1", ["training.averaging.decay"]),
        ("training.averaging.width=0.3", ["training.averaging.width"]),
        ("training.schedule.decay=linear", ["training.schedule.decay", "inverse_sqrt"]),
        ("training.devices.precision=float16", ["training.devices.precision", "bfloat16"]),
        ("training.devices.device=tpu", ["training.devices.device", "cuda"]),
        ("training.saving.checkpoint_every=0", ["training.saving.checkpoint_every"]),
        ("training.saving.keep_checkpoints=0", ["training.saving.keep_checkpoints"]),
        ("training=5", ["training"]),
        ("training=null", ["training"]),
        ("diffusion.output=x0", ["diffusion.output"]),
        ("recipe=[paper]", ["recipe", "paper, default"]),
        ("recipe=best", ["recipe 'best'", "paper, default"]),
        ("recipe=null", ["recipe", "paper, default"]),
        ("model=7", ["model"]),
        ("data.source=", ["data.source"]),
        ("data.background=zebra", ["background", "zebra"]),
        ("data.size=4", ["data.size", "8"]),
        ("data.fold=1", ["fold 1", "split"]),
    ],
)
def test_wrong_settings_are_named(assignment: str, says: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        resolve(DATA, None, [assignment])
    assert "\n" not in str(refusal.value)
    for word in says:
        assert word in str(refusal.value)


def test_steps_and_minutes_replace_each_other_but_not_both_at_once(tmp_path: Path) -> None:
    steps = written(tmp_path / "steps.json", {"training": {"steps": 50, "minutes": None}})
    assert resolve({**DATA, "training": {"minutes": 2}}, steps).training.steps is None
    minutes = written(tmp_path / "minutes.json", {"training": {"steps": None, "minutes": 3}})
    found = resolve({**DATA, "training": {"steps": 9}}, minutes).training
    assert (found.steps, found.minutes) == (9, None)
    assert resolve(DATA, minutes).training.minutes == 3
    with pytest.raises(InputError, match="either steps or minutes"):
        resolve({**DATA, "training": {"steps": 5, "minutes": 1}})
    with pytest.raises(InputError, match="either steps or minutes"):
        resolve(DATA, written(tmp_path / "both.json", {"training": {"steps": 5, "minutes": 1}}))


@pytest.mark.parametrize(("recipe", "steps"), [("default", 10_000), ("paper", 200_000)])
def test_there_is_always_an_end(recipe: str, steps: int) -> None:
    flags = {**DATA, "recipe": recipe}
    assert resolve(flags).training.steps == steps
    assert resolve(flags, None, ["training.steps=null"]).training.steps == steps
    assert resolve(flags, None, ["training.minutes=null"]).training.steps == steps


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.yaml", None, "No such file"),
        ("missing.json", None, "No such file"),
        ("broken.yaml", b"training: {steps: [", "is not valid YAML"),
        ("broken.json", b"{'training': 1}", "is not valid JSON"),
        ("binary.yaml", b"\xff\xfe\x00\x01", "is not text in UTF-8"),
        ("deep.yaml", b"[" * 5000, "is not valid YAML"),
        ("deep.json", b"[" * 200_000, "is not valid JSON"),
        ("list.yaml", b"- 1\n- 2\n", "should be a table"),
        ("list.json", b"[1]", "should be a table"),
        ("word.yaml", b"hello", "should be a table"),
        ("python.yaml", b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("key.yaml", b"trainig: {steps: 5}", "'trainig'"),
        ("key.json", b'{"training": {"step": 5}}', "did you mean 'training.steps'"),
        ("number.yaml", b"1: 2", "'1'"),
    ],
)
def test_configuration_files_that_are_refused(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refusal:
        resolve(DATA, tmp_path / name)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_no_configuration_file(tmp_path: Path) -> None:
    for name in ("c.yaml", "c.json"):
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=name):
            resolve(DATA, tmp_path / name)


def changed(config: RunConfig, name: str, value: Any) -> RunConfig:
    nested: Any = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    return RunConfig.model_validate(merge(config.model_dump(), nested))


def test_every_setting_is_either_named_as_different_or_may_change() -> None:
    before = resolve(DATA)
    others: dict[str, Any] = {
        "model": "diff-nca", "recipe": "paper", "init": "a", "autoencoder": "a", "architecture.channels": 29,
        "architecture.patch": 1, "architecture.sampling_fire_rate": 0.5, "architecture.output_gain": 0.5,
        "architecture.nca_steps": 9,
        "diffusion.timesteps": 5, "diffusion.schedule": "linear", "diffusion.output": "clean", "diffusion.loss": "mse",
        "diffusion.loss_on": "v", "diffusion.sigma_data": 0.1,
        "data.source": "x", "data.size": (9, 8), "data.fit": "pad", "data.domain": "faces", "data.flips": "both",
        "data.turns": True, "data.background": "red", "data.colour": "gray", "data.downscale": 2.0, "data.max_bad": 1,
        "data.max_pixels": 5, "data.mpp": 0.5, "data.stain_jitter": 0.1, "data.split": "none",
        "data.split_seed": 1, "data.cache_mb": 3, "data.verify": "headers",
        "data.labels": "none", "data.strict_ids": True, "data.max_value": 4095, "data.unlabelled": "x",
        "data.maps": "x",
        "training.steps": 5, "training.batch_size": 5, "training.seed": 5,
    }  # fmt: skip
    groups: dict[str, dict[str, Any]] = {
        "optimizer": {"name": "muon", "learning_rate": 0.5, "betas": (0.5, 0.5), "epsilon": 0.5, "clip_gradient": 0.5},
        "schedule": {"warmup": 5, "decay": "constant", "decay_rate": 0.5, "decay_after": 5, "cooldown": 0.5},
        "averaging": {"kind": "constant", "decay": 0.5, "width": 0.2},
        "saving": {
            **dict.fromkeys(("checkpoint_every", "keep_checkpoints", "validate_every", "validation_images"), 5),
            "sample_every": 5,
            "sample_images": 5,
            "tensorboard": True,
        },
        "devices": {
            "device": "cpu",
            "precision": "bfloat16",
            "kernel": "off",
            "compile": True,
            "recompute": "never",
            "workers": 5,
        },
    }
    others |= {f"training.{group}.{name}": value for group, table in groups.items() for name, value in table.items()}
    special = {
        "training.minutes",
        "data.fold",
        "data.classes",
        "diffusion.variance",
        "condition",
    }  # these cannot change alone
    special |= {f"latents.{name}" for name in LatentsConfig.model_fields}
    special |= {f"levels.{name}" for name in LevelsConfig.model_fields}
    assert set(others) | special >= set(flatten(before.model_dump()))
    for name, value in others.items():
        found = differences(before, changed(before, name, value))
        if name in MAY_CHANGE:
            assert found == []
        else:
            assert len(found) == 1
            assert found[0].startswith(f"{name} was ")


def test_all_differences_are_named_with_both_values() -> None:
    before = resolve(DATA, None, ["architecture.channels=32"])
    now = resolve(DATA, None, ["training.seed=4", "training.steps=7"])
    assert differences(before, now) == ["architecture.channels was 32, is 48", "training.seed was 0, is 4"]


def test_only_the_length_the_places_and_the_machine_may_change() -> None:
    assert {n.partition(".")[0] for n in MAY_CHANGE} == {"training", "data"}
    assert {"training.steps", "training.minutes", "data.source", "data.split"} <= MAY_CHANGE
    decisive = {"seed", "batch_size", "optimizer.learning_rate", "optimizer.betas", "optimizer.clip_gradient"}
    decisive |= {"schedule.warmup", "schedule.decay", "averaging.kind", "devices.precision"}
    assert not {f"training.{name}" for name in decisive} & MAY_CHANGE
    assert set(flatten(resolve(DATA).model_dump())) >= MAY_CHANGE


def test_a_run_that_starts_from_a_model_has_its_shape() -> None:
    """The bundled model has cells of one pixel and 300 timesteps, which is not what `default` chooses."""
    alone = resolve(DATA)
    started = resolve({**DATA, "init": "tissue-texture"})
    assert (alone.architecture_settings()["patch"], started.architecture_settings()["patch"]) == (2, 1)
    assert (alone.diffusion.timesteps, started.diffusion.timesteps) == (1000, 300)
    assert started.training == alone.training
    assert (
        resolve({**DATA, "init": "tissue-texture"}, None, ["architecture.patch=2"]).architecture_settings()["patch"]
        == 2
    )
    other = resolve({**DATA, "init": "tissue-texture", "model": "fourier-diff-nca-small"})
    assert other == resolve({**DATA, "model": "fourier-diff-nca-small"}).model_copy(update={"init": "tissue-texture"})


def test_a_run_goes_on_in_its_shape_when_the_model_it_started_from_is_gone(tmp_path: Path) -> None:
    base = tmp_path / "base"
    create_model("diff-nca-small", hidden=64, diffusion={"timesteps": 200}).save_pretrained(base)
    flags = {**DATA, "init": str(base)}
    begun = resolve(flags)
    assert (begun.architecture_settings()["hidden"], begun.diffusion.timesteps) == (64, 200)
    base.rename(tmp_path / "gone")
    assert differences(begun, resolve(flags))  # without the run's own record, the recipe's shape is all there is
    assert differences(begun, resolve(flags, before=begun)) == []
    other = resolve(flags, None, ["architecture.hidden=32"], before=begun)  # asked for, so it is not passed over
    assert differences(begun, other) == ["architecture.hidden was 64, is 32"]
    create_model("diff-nca-small", hidden=16).save_pretrained(base)  # another model, at the place of the first
    assert differences(begun, resolve(flags, before=begun)) == []


def test_a_run_in_latents_that_starts_from_a_model_has_its_shape(tmp_path: Path) -> None:
    create_model("diff-nca-small", hidden=64).save_pretrained(tmp_path / "base")
    started = resolve({**DATA, "init": str(tmp_path / "base"), "autoencoder": "some/autoencoder"})
    assert (started.architecture_settings()["hidden"], started.architecture_settings()["patch"]) == (64, 1)


@pytest.mark.parametrize("model", ["diff-nca-small", "fourier-diff-nca-small"])
@pytest.mark.parametrize(("size", "factor"), [(64, 8), (64, 4), (32, 4)])
def test_small_automata_in_latents_fit_small_images(model: str, size: int, factor: int) -> None:
    data = {"source": "faces", "size": size}
    config = resolve({"data": data, "model": model, "autoencoder": f"learn:{factor}"})
    built = build_model(config.model_settings(autoencoder=config.open_autoencoder()), model)
    patch = 2 if model.startswith("fourier") and size // factor >= 16 else 1  # its window needs 8 cells on a side
    assert (built.image.height, built.architecture.patch) == (size // factor, patch)  # type: ignore[attr-defined]
    pixels = resolve({"data": data, "model": model, "autoencoder": "none"})
    assert pixels.architecture["patch"] == 2 and pixels.architecture != config.architecture
    own = resolve({"data": data, "model": model, "autoencoder": "learn:4"}, assignments=["architecture.channels=48"])
    assert own.architecture["channels"] == 48


def test_latents_are_the_default_where_they_were_better(images: Path, tmp_path: Path) -> None:
    def autoencoder(*assignments: str, size: object = 64, **flags: Any) -> str | None:
        data = {"source": str(images), "size": size, **flags.pop("data", {})}
        return resolve({"data": data, **flags}, assignments=assignments).autoencoder

    assert autoencoder() == autoencoder(model="fourier-diff-nca-small") == "learn:4"
    assert autoencoder(autoencoder="none") is None and autoencoder(autoencoder="learn:8") == "learn:8"
    for size in (48, 66, "64x70"):
        assert autoencoder(size=size) is None, size
    for other in ({"recipe": "paper"}, {"model": "diff-nca"}, {"model": "unet-200k"}, {"levels": {"count": 2}}):
        assert autoencoder(**other) is None, other
    assert autoencoder("architecture.nca_steps=3") is None
    for data in ({"fit": "random"}, {"domain": "texture"}, {"stain_jitter": 0.1}):
        assert autoencoder(data=data) is None, data
    before = resolve({"data": {"source": str(images), "size": 64}, "autoencoder": "none"})
    again = resolve({"data": {"source": str(images), "size": 64}}, before=before)
    assert again.autoencoder is None and again.architecture == before.architecture  # a run goes on as it was begun


def test_geca_as_published_inherits_in_latents_too() -> None:
    for autoencoder in ({}, {"autoencoder": "stabilityai/sd-vae-ft-ema"}):
        config = resolve(
            {"data": {"source": "faces", "size": 256}, "model": "geca-s", "recipe": "paper", **autoencoder}
        )
        assert config.architecture == {"heredity": "hidden"}
