"""A pyramid model: its levels' seeds and sizes, its files, and what does not belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_helpers import level, make_ladder

from morphogen.core.errors import InputError
from morphogen.core.images import as_stored
from morphogen.core.keys import Key
from morphogen.core.model import Batch, StepInfo
from morphogen.core.model_files import save_model
from morphogen.core.request import SamplingRequest
from morphogen.diffusion.condition import in_sampling
from morphogen.diffusion.ladder import Ladder
from morphogen.diffusion.sampling import sample
from morphogen.models import build_model, load_model
from morphogen.tasks.pipeline import Pipeline

REQUEST = SamplingRequest("dpm++", 3)


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    return make_ladder()


def test_sizes_and_scales(ladder: Ladder) -> None:
    assert [ladder.scale(k) for k in range(3)] == [9, 3, 1]
    assert ladder.sizes((100, 47)) == [(12, 6), (34, 16), (100, 47)]
    assert (ladder.image.height, ladder.image.width) == (108, 108)  # the coarsest level's 12, nine times
    assert ladder.minimum_size == 10  # two coarse pixels
    assert ladder.receptive_range == 2 * 9 + (2 + 1) * 3 + (2 + 1)


def test_a_level_is_told_what_the_one_before_has_painted(ladder: Ladder) -> None:
    """The whole is what one gets by hand, level by level; so repainting one level leaves those before as they are."""
    key, size = Key.of([4, 9]), (20, 31)
    whole = ladder.generate(key, size, REQUEST)
    coarse = sample(ladder[0], ladder.key(key, 0), (3, 4), REQUEST)
    told = in_sampling(ladder[1].condition, as_stored(coarse), ladder.key(key, 1), (7, 11))  # type: ignore[arg-type]
    middle = sample(ladder[1], ladder.key(key, 1), (7, 11), REQUEST, condition=told)
    assert torch.equal(ladder.up_to(1).generate(key, (7, 11), REQUEST), middle)
    assert torch.equal(ladder.up_to(0).generate(key, (3, 4), REQUEST), coarse)
    told = in_sampling(ladder[2].condition, as_stored(middle), ladder.key(key, 2), size)  # type: ignore[arg-type]
    assert torch.equal(sample(ladder[2], ladder.key(key, 2), size, REQUEST, condition=told), whole)
    seeds = {ladder.key(key, k).seeds for k in range(3)}
    assert len(seeds) == 3


@settings(max_examples=10, deadline=None)
@given(size=st.tuples(st.integers(10, 40), st.integers(10, 40)), batch=st.integers(1, 3))
def test_a_seed_gives_its_image_in_any_batch(ladder: Ladder, size: tuple[int, int], batch: int) -> None:
    alone = ladder.generate(Key.of([7]), size, REQUEST)
    among = ladder.generate(Key.of([7, *range(batch)]), size, REQUEST)
    torch.testing.assert_close(alone[0], among[0], atol=1e-4, rtol=0)  # sums in another order, through three levels


def test_files_and_pipeline(ladder: Ladder, tmp_path: Path) -> None:
    save_model(ladder, ladder.config_dict(), tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, Ladder)
    key = Key.of([1])
    assert torch.equal(again.generate(key, (20, 20), REQUEST), ladder.generate(key, (20, 20), REQUEST))
    seen: list[tuple[int, int]] = []

    def tell(now: StepInfo) -> None:
        seen.append((now.step, now.steps))

    made = Pipeline(again, "float32")(2, seeds=1, height=20, width=20, num_inference_steps=4, callback=tell)
    assert made.images[0].size == (20, 20)  # type: ignore[index]
    assert seen == [(k, 12) for k in range(1, 13)]
    coarse = Pipeline.from_pretrained(tmp_path, level=0)
    assert coarse.model.picture.height == 12
    for wrong in (3, -1):
        with pytest.raises(InputError, match=rf"no level {wrong}; this model has the levels 0 \(coarsest\) to 2"):
            Pipeline.from_pretrained(tmp_path, level=wrong)
    with pytest.raises(InputError, match="no pyramid"):
        Pipeline.from_pretrained("tissue-texture", level=0)


def test_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match="level 0 is told a picture, but nothing is painted before"):
        Ladder([level(1), level(1)])
    with pytest.raises(ValueError, match="level 1 is not told what the level before has painted"):
        Ladder([level(0), level(0)])
    with pytest.raises(
        ValueError, match="paints at 1 micrometres a pixel and is told pictures at 3, but level 0 paints at 2"
    ):
        Ladder([level(0, mpp=2.0), level(1, mpp=1.0)])
    assert len(Ladder([level(0, mpp=3.0), level(1, mpp=1.0)])) == 2
    with pytest.raises(InputError, match="trained level by level"):
        Ladder([level(0), level(1)]).training_loss(Batch(torch.zeros(1, 3, 12, 12)), Key.of([0]))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "levels should be a list of models"),
        ([{"family": "vnca"}], "levels.0: family should be a denoiser's, not 'vnca'"),
        ([{"family": "diff-nca", "colour": 1}], "levels.0: there is no setting 'colour'"),
        ([7], "levels.0 should be a table"),
        ([{"family": "pyramid", "levels": []}], "levels.0: family should be a denoiser's, not 'pyramid'"),
    ],
)
def test_refuses_files_that_describe_none(levels: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model({"family": "pyramid", "levels": levels}, "config.json")
