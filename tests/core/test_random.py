"""The generator against published numbers, and the coordinates that every number is a function of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from morphogen.core import random
from morphogen.core.keys import Key
from morphogen.core.random import Purpose

ONES = 0xFFFFFFFF
# kat_vectors of Random123 (Salmon et al.), philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# Far positions, and negative ones: a canvas may be extended to the left.
origins = st.one_of(
    st.integers(-40, 40), st.integers(2**40 - 20, 2**40 + 20), st.integers(-(2**40) - 20, -(2**40) + 20)
)
seeds = st.integers(0, random.MAX_SEED)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], output: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    words = random.philox(torch.tensor(key), (c0, c1, c2, c3))
    assert tuple(int(word) for word in words) == output


def test_philox_of_many_counters_is_that_of_each() -> None:
    counters = [torch.tensor([counter[i] for counter, _, _ in KNOWN_ANSWERS]) for i in range(4)]
    keys = torch.tensor([[key[i] for _, key, _ in KNOWN_ANSWERS] for i in range(2)])
    words = random.philox(keys, (counters[0], counters[1], counters[2], counters[3]))
    assert [tuple(int(word[i]) for word in words) for i in range(3)] == [output for _, _, output in KNOWN_ANSWERS]


def test_words_are_philox_of_the_position() -> None:
    """The counter is (x low, x high, y low, y high), in two's complement for negative positions."""
    y, x, key = -3, 2**40 + 5, 0x0123456789ABCDEF
    counter = [torch.tensor(w) for w in (x & ONES, x >> 32, y & ONES, (y >> 32) & ONES)]
    wanted = random.philox(torch.tensor([key & ONES, key >> 32]), (counter[0], counter[1], counter[2], counter[3]))
    found = random.words([key], [(y - 1, x - 2)], (4, 4))
    assert [int(w[0, 0, 1, 2]) for w in found] == [int(w) for w in wanted]


def test_numbers_are_pinned() -> None:
    """Saved images depend on these values: a change of any is a change of every user's picture of a seed."""
    assert random.mix(1, 2, 3) == 0xCD8D705991914EA1
    noise = Key.of([7]).normals(Purpose.INITIAL_NOISE, 3, (2, 2), "cpu")[0, :, 1, 0]
    # One unit in the last place of float32, in case a system's logarithm or cosine rounds differently.
    torch.testing.assert_close(noise, torch.tensor([-0.24061881, -0.229860872, 0.852393746]), rtol=1.2e-7, atol=0)
    masks = Key.of([7]).fire_masks(5, 0.5, (2, 3), "cpu")
    assert ["".join(str(int(cell)) for cell in mask.flatten()) for mask in masks] == [
        "111110",
        "111011",
        "000011",
        "110010",
        "100010",
    ]


def test_mix_known_answer() -> None:
    """The first step from a state of zero is SplitMix64's first output from the seed 0."""
    assert random.mix(0x243F6A8885A308D3) == 0xE220A8397B1DCDAF


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.integers(0, 2**70), min_size=1, max_size=4), at=st.integers(0, 3), bit=st.integers(0, 63))
def test_mix_depends_on_every_bit_of_every_word(words: list[int], at: int, bit: int) -> None:
    other = list(words)
    other[at % len(words)] ^= 1 << bit
    assert random.mix(*other) != random.mix(*words)
    assert 0 <= random.mix(*words) < 2**64
    assert random.mix(*words, 0) != random.mix(*words)


def test_mix_depends_on_the_order() -> None:
    assert random.mix(1, 2) != random.mix(2, 1)


def test_integers_are_distinct_and_repeatable() -> None:
    drawn = random.integers(5, 1000)
    assert len(set(drawn)) == 1000
    assert random.integers(5, 10) == drawn[:10]
    assert not set(random.integers(6, 1000)) & set(drawn)


def test_normals_are_normal() -> None:
    """2**18 numbers of 4 channels: moments within five standard errors, and a Kolmogorov-Smirnov test.

    The seed is fixed, so that this either always passes or always fails.
    """
    drawn = Key.of([11]).normals(Purpose.INITIAL_NOISE, 4, (256, 256), "cpu")
    assert drawn.dtype == torch.float32 and drawn.shape == (1, 4, 256, 256)
    numbers = drawn.double().flatten()
    error = 1 / len(numbers) ** 0.5
    assert abs(numbers.mean()) < 5 * error
    assert abs(numbers.var() - 1) < 5 * 2**0.5 * error
    assert abs((numbers**3).mean()) < 5 * 15**0.5 * error
    assert abs((numbers**4).mean() - 3) < 5 * 96**0.5 * error
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 0.01
    assert numbers.abs().max() < 6.9  # the largest radius of Box-Muller on 32-bit words


@pytest.mark.parametrize("other", ["channel", "row", "column", "seed", "evaluation", "purpose", "radius"])
def test_normals_are_uncorrelated(other: str) -> None:
    """Between neighbours of every kind: within five standard errors of zero, seeds fixed."""
    size = (128, 128)
    here = Key.of([3]).normals(Purpose.INITIAL_NOISE, 4, size, "cpu").double()
    pairs = {
        "channel": (here[:, :-1], here[:, 1:]),
        "row": (here[..., :-1, :], here[..., 1:, :]),
        "column": (here[..., :-1], here[..., 1:]),
        "seed": (here, Key.of([4]).normals(Purpose.INITIAL_NOISE, 4, size, "cpu").double()),
        "evaluation": (here, Key.of([3]).at(1).normals(Purpose.INITIAL_NOISE, 4, size, "cpu").double()),
        "purpose": (here, Key.of([3]).normals(Purpose.SAMPLER_NOISE, 4, size, "cpu").double()),
        "radius": (here[:, :-1] ** 2 - 1, here[:, 1:] ** 2 - 1),  # cosine and sine of one radius
    }
    a, b = pairs[other]
    spread = float(a.std() * b.std()) / a.numel() ** 0.5
    assert abs(float((a * b).mean())) < 5 * spread


def everything(key: Key, size: tuple[int, int]) -> Tensor:
    """Normals of five channels (more than one Philox block) and masks of five steps, one above the other."""
    noise = key.normals(Purpose.SAMPLER_NOISE, 5, size, "cpu")
    return torch.cat([noise, *(mask.float() for mask in key.fire_masks(5, 0.5, size, "cpu"))], dim=1)


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    evaluation=st.integers(0, 1000),
    y=origins,
    x=origins,
    top=st.integers(0, 6),
    left=st.integers(0, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
@example(seed=0, evaluation=0, y=-3, x=2**32 - 4, top=2, left=3, height=4, width=4)  # over the edges of words
def test_a_tile_is_the_same_region_of_the_whole(
    seed: int, evaluation: int, y: int, x: int, top: int, left: int, height: int, width: int
) -> None:
    whole = everything(Key((seed,), evaluation, ((y, x),)), (11, 12))
    tile = everything(Key((seed,), evaluation, ((y + top, x + left),)), (height, width))
    assert torch.equal(tile, whole[..., top : top + height, left : left + width])


@settings(max_examples=25, deadline=None)
@given(
    images=st.lists(st.tuples(seeds, origins, origins), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    evaluation=st.integers(0, 1000),
)
def test_an_image_is_the_same_alone_in_a_batch_and_in_any_order(
    images: list[tuple[int, int, int]], order: object, evaluation: int
) -> None:
    shuffled = list(range(len(images)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]

    def of(chosen: list[tuple[int, int, int]]) -> Tensor:
        key = Key(tuple(s for s, _, _ in chosen), evaluation, tuple((y, x) for _, y, x in chosen))
        return everything(key, (4, 5))

    batch = of([images[i] for i in shuffled])
    for place, i in enumerate(shuffled):
        assert torch.equal(batch[place], of([images[i]])[0])


def test_numbers_differ_in_every_coordinate() -> None:
    """No two grids of all that a key can say are equal, and no two of their numbers at the same place are."""
    size = (8, 8)
    grids = {}
    for seed in (0, 1, 2**32, 2**63, random.MAX_SEED):
        for evaluation in (0, 1, 255):
            for purpose in Purpose:
                noise = Key((seed,), evaluation).normals(purpose, 6, size, "cpu")
                for channel in range(6):
                    grids[seed, evaluation, purpose, channel] = noise[0, channel]
    numbers = torch.stack([grid.flatten() for grid in grids.values()])
    for i in range(64):  # of 630 numbers of 24 random bits, a few coincide at most
        assert len(numbers[:, i].unique()) >= len(numbers) - 3
    assert len(torch.unique(numbers, dim=0)) == len(grids)


def test_masks_differ_in_every_coordinate() -> None:
    masks = {}
    for seed in (0, 1, 2**40):
        for evaluation in (0, 1):
            for stage in (0, 1):
                of = Key((seed,), evaluation).fire_masks(9, 0.5, (8, 8), "cpu", stage)
                masks |= {(seed, evaluation, stage, step): mask for step, mask in enumerate(of)}
    assert len(torch.unique(torch.stack([m.flatten() for m in masks.values()]), dim=0)) == len(masks) == 108


@pytest.mark.gpu
def test_bits_are_the_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    key = Key((5, random.MAX_SEED), 3, ((2**40, -7), (0, 0)))
    for a, b in zip(key.fire_masks(6, 0.9, (33, 20), "cpu"), key.fire_masks(6, 0.9, (33, 20), "cuda"), strict=True):
        assert torch.equal(a, b.cpu())
    here, there = (key.normals(Purpose.INITIAL_NOISE, 3, (33, 20), device) for device in ("cpu", "cuda"))
    # Float64 functions differ in the last place, which rounding to float32 hides but for rare ties.
    torch.testing.assert_close(here, there.cpu(), rtol=1.2e-7, atol=0)
