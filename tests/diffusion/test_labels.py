"""Labels, guidance and the learned variance, over a model small enough to be checked number by number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key
from morphogen.core.model import Batch, LabelConfig
from morphogen.core.random import Purpose
from morphogen.core.request import SamplingRequest
from morphogen.diffusion import objective
from morphogen.diffusion.config import DiffusionConfig
from morphogen.diffusion.guidance import check_guidance, guided
from morphogen.diffusion.samplers import SAMPLERS
from morphogen.diffusion.sampling import sample
from morphogen.diffusion.schedule import alpha_bar, alpha_sigma, betas
from morphogen.diffusion.solvers import CLEAN, NoiseLevel, ddpm
from morphogen.diffusion.variance import alpha_bars, between, log_bounds, posterior_mean
from morphogen.models import create_model, load_model
from morphogen.tasks.pipeline import Pipeline

NAMES = ("cat", "dog", "owl")
LEARNED = DiffusionConfig(timesteps=100, schedule="linear", loss="mse+vb", variance="learned")


def make(exclusive: bool = True, labels: tuple[str, ...] = NAMES, **options: Any) -> Any:
    settings: dict[str, Any] = {"width": 16, "heads": 2, "mlp": 8, "hidden": 4, "nca_steps": 2, **options}
    model = create_model("geca-xs", size=8, labels=labels, exclusive=exclusive, **settings)
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


# ------------------------------------------------------------------------------------------------ labels


def test_a_row_of_labels() -> None:
    labels = LabelConfig(names=NAMES, exclusive=False)
    assert labels.row(["owl", "cat"]).tolist() == [1, 0, 1] and labels.row([]).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="no label 'cow'; known are cat, dog, owl"):
        labels.row(["cat", "cow"])
    with pytest.raises(InputError, match="one of the labels cat, dog, owl, not cat and dog"):
        LabelConfig(names=NAMES).row(["cat", "dog"])
    for names, says in ((("a", "a"), "named twice"), (("a", " "), "empty")):
        with pytest.raises(ValidationError, match=says):
            LabelConfig(names=names)


def test_labels_are_saved_with_the_model(tmp_path: Path) -> None:
    make(exclusive=False).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["labels"] == {"names": list(NAMES), "exclusive": False}
    assert load_model(tmp_path).labels == LabelConfig(names=NAMES, exclusive=False)
    make(labels=()).save_pretrained(tmp_path / "none")
    assert "labels" not in json.loads((tmp_path / "none" / "config.json").read_text())


def test_labels_that_a_model_does_not_take() -> None:
    x, t, rows = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.eye(3)[:2]
    with pytest.raises(InputError, match="takes no labels"):
        make(labels=())(x, t, Evaluation(Key.of([0]), rows))
    for wrong in (rows[:1], rows[:, :2]):
        with pytest.raises(InputError, match=r"labels have the shape .* cat, dog, owl"):
            make()(x, t, Evaluation(Key.of([0]), wrong))
    with pytest.raises(InputError, match="unet takes no labels"):
        create_model("unet-50k", labels=NAMES)


def test_unknown_labels_are_another_thing_than_none_of_them() -> None:
    x, t, zeros = torch.randn(1, 3, 8, 8), torch.full((1,), 50.0), torch.zeros(1, 3)
    for null, same in (("own", False), ("zeros", True)):
        model = make(null_label=null)
        with torch.no_grad():
            assert torch.equal(model(x, t).noise, model(x, t, Evaluation(Key.of([0]), model.null_rows(1))).noise)
            assert torch.equal(model(x, t).noise, model(x, t, Evaluation(Key.of([0]), zeros)).noise) == same


@pytest.mark.parametrize("null", [-1.0, 0.0])
def test_hidden_labels(null: float) -> None:
    """As often as asked for, for all labels of an image at once or for each by itself, and by the seed alone."""
    rows, seeds, name = torch.ones(4000, 3), range(4000), {-1.0: "own", 0.0: "zeros"}[null]
    at_once = make(null_label=name, label_dropout=0.3).hide_labels(rows, Key.of(seeds))
    assert set(at_once.unique().tolist()) == {null, 1.0}
    assert (at_once == at_once[:, :1]).all()
    each = make(null_label=name, label_dropout=0.3, drop_labels="label").hide_labels(rows, Key.of(seeds))
    assert not (each == each[:, :1]).all()
    for found in (at_once[:, 0], each[:, 0], each[:, 2]):
        share = float((found == null).float().mean())
        assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert torch.equal(make(null_label=name, label_dropout=0.3).hide_labels(rows[:5], Key.of(range(5))), at_once[:5])
    assert torch.equal(make(label_dropout=0.0).hide_labels(rows, Key.of(seeds)), rows)


def test_training_learns_from_labels() -> None:
    """With labels the loss is another than without, but where they are hidden; a batch without labels has none."""
    model = make(label_dropout=0.5)
    images = torch.randn(1, 3, 8, 8)
    hidden = 0
    for seed in range(12):
        key = Key.of([seed])
        rows = torch.eye(3)[1:2]
        loss = model.training_loss(Batch(images, rows), key)
        if torch.equal(loss, model.training_loss(Batch(images), key)):
            hidden += 1
            assert model.hide_labels(rows, key).tolist() == [[-1, -1, -1]]
    assert 0 < hidden < 12


def test_a_model_without_labels_passes_over_those_of_the_data() -> None:
    model, images = make(labels=()), torch.randn(2, 3, 8, 8)
    losses = [model.training_loss(Batch(images, rows), Key.of([1, 2])) for rows in (None, torch.eye(4)[:2])]
    assert torch.equal(*losses)


# ------------------------------------------------------------------------------------------------ guidance


@pytest.mark.parametrize("precision", [None, "float32"])
def test_guidance_is_the_line_through_both_predictions(precision: Any) -> None:
    model = make()
    if model.compute_in(precision) is not None:
        pytest.skip("no compiler")
    x, t, key, rows = torch.randn(2, 3, 8, 8), torch.full((2,), 60.0), Key.of([5, 6]).at(3), torch.eye(3)[:2]
    memories = [torch.randn(2, model.outputs + 4, 8, 8) for _ in range(2)]
    with torch.no_grad():
        told = model(x, t, Evaluation(key, rows, memories[0]))
        untold = model(x, t, Evaluation(key, memory=memories[1]))
        found = guided(model, x, t, Evaluation(key, rows, torch.cat(memories)), 2.5)
    assert torch.allclose(found.noise, untold.noise + 2.5 * (told.noise - untold.noise), atol=1e-6)
    assert torch.allclose(found.memory, torch.cat([told.memory, untold.memory]), atol=1e-6)  # the same fire masks
    assert torch.allclose(found.variance, told.variance, atol=1e-6)


def test_guidance_one_is_none_and_zero_knows_no_labels() -> None:
    model, key = make(heredity="none"), Key.of([1, 2])
    rows = torch.eye(3)[:2]
    plain = model.generate(key, request=SamplingRequest(steps=3), labels=rows)
    assert torch.equal(model.generate(key, request=SamplingRequest(steps=3, guidance=1.0), labels=rows), plain)
    zero = model.generate(key, request=SamplingRequest(steps=3, guidance=0.0), labels=rows)
    assert torch.allclose(zero, model.generate(key, request=SamplingRequest(steps=3)), atol=1e-5)
    assert not torch.allclose(zero, plain, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_with_every_sampler(sampler: str) -> None:
    """An image's own labels decide it, whatever else is in the batch."""
    model, rows = make(), torch.eye(3)
    found = model.generate(Key.of([1, 1, 2]), request=SamplingRequest(sampler, 3, 3.0), labels=rows)
    assert torch.isfinite(found).all() and not torch.equal(found[0], found[1])
    alone = model.generate(Key.of([1]), request=SamplingRequest(sampler, 3, 3.0), labels=rows[1:2])
    assert torch.allclose(alone[0], found[1], atol=1e-4)


def test_guidance_that_cannot_be() -> None:
    model = make()
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="guidance scale is"):
            model.generate(Key.of([0]), labels=torch.eye(3)[:1], request=SamplingRequest(guidance=scale))
    with pytest.raises(InputError, match=r"guidance 1.5 needs labels"):
        model.generate(Key.of([0]), request=SamplingRequest(guidance=1.5))
    with pytest.raises(InputError, match="needs a model that was trained with labels"):
        check_guidance(make(labels=()), 1.5, torch.zeros(1, 0))
    with pytest.raises(InputError, match="needs a model that was trained with labels"):
        check_guidance(create_model("diff-nca-small"), 1.5, torch.zeros(1, 3))  # type: ignore[arg-type]


def test_pipeline_takes_names() -> None:
    model = make(exclusive=False)
    pipeline = Pipeline(model)
    settings: dict[str, Any] = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}
    rows = torch.tensor([[0.0, 1, 0], [0, 1, 0]])
    for given in ("dog", ["dog", "dog"], [["dog"], ["dog"]], rows):
        found = pipeline(labels=given, guidance_scale=2.0, **settings).images
        assert torch.equal(found, pipeline(labels=rows, guidance_scale=2.0, **settings).images)
    both = pipeline(labels=[["dog", "cat"], "owl"], guidance_scale=2.0, **settings).images
    assert not torch.equal(both[0], found[0])
    each = pipeline(labels=[["dog", "cat"], "owl"], guidance_scale=2.0, batch_size=1, **settings).images
    assert torch.allclose(both, each, atol=1e-5)
    assert not torch.equal(pipeline(nca_steps=1, **settings).images, pipeline(**settings).images)
    for labels, says in (("cow", "known are cat, dog, owl"), (["cat"], "1 images, but 2 seeds")):
        with pytest.raises(InputError, match=says):
            pipeline(labels=labels, **settings)
    with pytest.raises(InputError, match="without labels"):
        Pipeline(make(labels=()))(labels="cat", **settings)


# ------------------------------------------------------------------------------------------------ variance


def test_variance_and_loss_go_together() -> None:
    for values in ({"variance": "learned"}, {"loss": "mse+vb"}):
        with pytest.raises(ValidationError, match="go together"):
            DiffusionConfig(**values)  # type: ignore[arg-type]


def reference_posterior(t: int) -> tuple[float, float, float]:
    """Variance, and the weights of the clean image and of the noisy one in the mean, by Ho et al., equation 7."""
    beta = betas(LEARNED)
    share = np.cumprod(1 - beta)
    before = share[t - 1] if t else 1.0
    return (
        beta[t] * (1 - before) / (1 - share[t]),
        math.sqrt(before) * beta[t] / (1 - share[t]),
        math.sqrt(1 - beta[t]) * (1 - before) / (1 - share[t]),
    )


@pytest.mark.parametrize("t", [1, 2, 50, 99])
def test_bounds_and_mean_of_a_step(t: int) -> None:
    shares = alpha_bars(LEARNED, torch.tensor([float(t)]))
    variance, of_clean, of_x = reference_posterior(t)
    low, high = (float(b) for b in log_bounds(*shares))
    assert low == pytest.approx(math.log(variance)) and high == pytest.approx(math.log(betas(LEARNED)[t]))
    middle = between(log_bounds(*shares), torch.zeros(1, 1, 1, 1))
    assert float(middle) == pytest.approx((low + high) / 2, rel=1e-5)
    ones, zeros = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert float(posterior_mean(*shares, ones, zeros)) == pytest.approx(of_clean, rel=1e-5)
    assert float(posterior_mean(*shares, zeros, ones)) == pytest.approx(of_x, rel=1e-5)


@pytest.mark.parametrize("t", [0, 1, 40, 99])
def test_variational_bound(t: int) -> None:
    """Against the divergence of two normals in float64, and at t = 0 the probability of a value's bin by scipy."""
    generator = torch.Generator().manual_seed(t)
    images = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
    images[0, 0, 0] = torch.tensor([-1.0, 1, -1, 1])
    noise, wrong = (torch.randn(1, 3, 4, 4, generator=generator) for _ in range(2))
    time = torch.tensor([float(t)])
    x = objective.add_noise(LEARNED, images, noise, time)
    output, variance = noise + 0.1 * wrong, torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
    found = float(objective.variational_bound(LEARNED, images, x, time, output, variance))

    signal, sigma = (float(s) for s in alpha_sigma(LEARNED, time))
    clean = ((x - sigma * output) / signal).double().numpy()
    low = math.log(reference_posterior(max(t, 1))[0])
    log = low + (variance.double().numpy() + 1) / 2 * (math.log(betas(LEARNED)[t]) - low)
    _, of_clean, of_x = reference_posterior(t)
    mean = of_clean * clean + of_x * x.double().numpy()
    if t == 0:
        value, deviation = images.double().numpy(), np.exp(log / 2)
        upper = np.where(value > 0.999, 1.0, stats.norm.cdf(value + 1 / 255, mean, deviation))
        lower = np.where(value < -0.999, 0.0, stats.norm.cdf(value - 1 / 255, mean, deviation))
        nats = -np.log(np.maximum(upper - lower, 1e-12))
    else:
        wanted = of_clean * images.double().numpy() + of_x * x.double().numpy()
        nats = 0.5 * (log - low + (math.exp(low) + (wanted - mean) ** 2) / np.exp(log) - 1)
    assert found == pytest.approx(float(nats.mean()) / math.log(2), rel=2e-3)


def test_the_bound_trains_the_variance_alone() -> None:
    model = make(diffusion={"timesteps": 50}, nca_steps=1)  # with more, later noise follows from an earlier variance
    key, batch = Key.of([3]), Batch(torch.rand(1, 3, 8, 8) * 2 - 1)
    model.training_loss(batch, key).backward()
    of_both = model.last.weight.grad.clone()
    model.zero_grad()
    t = objective.draw_timesteps(model.diffusion, key, torch.device("cpu"))
    noise = key.normals(Purpose.TRAINING_NOISE, 3, (8, 8), "cpu")
    prediction = model.evaluate(objective.add_noise(model.diffusion, batch.images, noise, t), t, Evaluation(key))
    (prediction.noise - noise).square().mean().backward()
    assert torch.allclose(model.last.weight.grad[:3], of_both[:3], atol=1e-6)
    assert (model.last.weight.grad[3:6] - of_both[3:6]).abs().max() > 1e-5


def test_ancestral_steps_have_the_learned_variance() -> None:
    """At the lower bound the step is that of a fixed variance; at the upper one its noise has the step's own."""
    x = torch.randn(1, 3, 4, 4)
    clean, noise, fresh = torch.zeros_like(x), x, torch.ones_like(x)
    now, after = (NoiseLevel(float(alpha_bar(LEARNED, torch.tensor(t)))) for t in (60, 50))

    def stepped(fresh: Tensor, learned: Tensor | None = None, following: NoiseLevel = after) -> Tensor:
        return ddpm(x, clean, noise, now, following, None, fresh, learned)[0]

    fixed, mean = stepped(fresh), stepped(torch.zeros_like(x))
    assert torch.allclose(stepped(fresh, -torch.ones_like(x)), fixed, atol=1e-6)
    upper = stepped(fresh, torch.ones_like(x)) - mean
    assert torch.allclose(upper, torch.full_like(x, (1 - now.alpha_bar / after.alpha_bar) ** 0.5), atol=1e-6)
    assert torch.equal(stepped(fresh, -torch.ones_like(x), CLEAN), clean)


def test_sampling_uses_it() -> None:
    model = make(diffusion={"timesteps": 20})

    def images(sampler: str, shift: float) -> Tensor:
        model.last.bias.data[3:6] += shift
        found = sample(model, Key.of([1]), (8, 8), SamplingRequest(sampler, 5))
        model.last.bias.data[3:6] -= shift
        return found

    assert not torch.allclose(images("ddpm", 0.0), images("ddpm", 0.3), atol=1e-3)


def test_recipes_of_geca() -> None:
    from morphogen.training.recipes import resolve

    config = resolve({"model": "geca-s", "recipe": "paper", "data": {"source": "x"}})
    assert config.diffusion == DiffusionConfig(timesteps=1000, schedule="linear", loss="mse+vb", variance="learned")
    assert (config.training.optimizer.learning_rate, config.training.batch_size, config.training.averaging.decay) == (
        1e-4,
        128,
        0.9999,
    )
    printed = ("diffusion.variance=fixed", "diffusion.loss=mse")
    assert resolve({"model": "geca-s", "data": {"source": "x"}}, None, printed).diffusion.loss == "mse"


def test_a_condition_is_refused() -> None:
    """No model here was trained with one."""
    evaluation = Evaluation(Key.of([0]), condition=torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="this geca was trained without a condition; leave it out"):
        make()(torch.zeros(1, 3, 8, 8), torch.zeros(1), evaluation)
