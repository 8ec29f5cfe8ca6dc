"""The policies: which operation, how strong, how often; and a batch is no more than its samples."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from offramp.training.augment.policies import (
    FILL,
    OPERATIONS,
    RAND_OPERATIONS,
    RAND_STRENGTH,
    SIGNED,
    SUB_POLICIES,
    TRIVIAL_LEVELS,
    UNLEARNED_OPERATIONS,
    Searched,
    apply_operations,
    auto_augment,
    auto_strengths,
    rand_augment,
    trivial_augment,
    trivial_strengths,
)

Policy = Callable[..., Tensor]
Shares = dict[bytes, float]
EVERY = pytest.mark.parametrize(
    "policy", [auto_augment, partial(auto_augment, searched="imagenet"), rand_augment, trivial_augment]
)
SEARCHED = pytest.mark.parametrize("searched", SUB_POLICIES)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, height: int = 16, width: int = 20) -> Tensor:
    """Values 20 to 219, so that every operation, auto-contrast included, changes the picture."""
    return torch.randint(20, 220, (batch, 3, height, width), generator=seeded(3)).to(torch.uint8)


@EVERY
def test_one_seed_gives_one_result(policy: Policy) -> None:
    images = noise(64)
    assert torch.equal(policy(images, seeded(1)), policy(images, seeded(1)))
    assert not torch.equal(policy(images, seeded(1)), policy(images, seeded(2)))


@EVERY
def test_a_second_batch_from_one_generator_is_drawn_anew(policy: Policy) -> None:
    images, generator = noise(64), seeded(1)
    assert not torch.equal(policy(images, generator), policy(images, generator))


@EVERY
@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_type_and_layout_are_kept_and_the_input_too(
    policy: Policy, batch: int, layout: torch.memory_format
) -> None:
    images = noise(batch).contiguous(memory_format=layout)
    untouched = images.clone()
    augmented = policy(images, seeded(0))
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    assert augmented.device == images.device
    # An empty tensor has every layout at once.
    assert not batch or augmented.is_contiguous(memory_format=layout)
    assert torch.equal(images, untouched)


@EVERY
def test_layout_does_not_change_the_result(policy: Policy) -> None:
    images = noise(64)
    interleaved = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(policy(images, seeded(4)), policy(interleaved, seeded(4)))


@EVERY
def test_fill_reaches_the_geometric_operations(policy: Policy) -> None:
    images = torch.full((256, 3, 16, 20), 20, dtype=torch.uint8)
    augmented = policy(images, seeded(0))
    assert (augmented == FILL).all(1).flatten(1).any(1).sum() > 20


@SEARCHED
def test_there_are_twenty_five_sub_policies_of_known_operations(searched: Searched) -> None:
    assert len(SUB_POLICIES[searched]) == 25
    for pair in SUB_POLICIES[searched]:
        for name, probability, level in pair:
            assert name in OPERATIONS
            assert 0 <= probability <= 1
            assert 0 <= level <= 9


def test_the_policies_without_a_search_have_fourteen_operations_of_equal_number() -> None:
    assert tuple(OPERATIONS)[:14] == UNLEARNED_OPERATIONS
    assert "invert" not in UNLEARNED_OPERATIONS


def test_auto_augment_strengths_are_those_of_the_paper() -> None:
    levels = [auto_strengths(level / 9, height=64, width=32) for level in range(10)]
    strengths = {name: tuple(level[name] for level in levels) for name in OPERATIONS}
    assert strengths["shear_x"][9] == pytest.approx(0.3)
    assert strengths["rotate"][2] == pytest.approx(30 * 2 / 9)
    assert strengths["translate_x"] == (0, 1, 3, 4, 6, 8, 9, 11, 12, 14)
    assert strengths["translate_y"][9] == 29
    assert strengths["brightness"] == pytest.approx([0.1 * level for level in range(10)])
    assert strengths["posterize"] == (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)
    assert strengths["solarize"][0] == 256
    assert strengths["solarize"][9] == 0


def test_trivial_augment_strengths_are_those_of_its_wide_space() -> None:
    strongest = trivial_strengths(1.0)
    assert [strongest[name] for name in ("shear_y", "rotate", "translate_x", "contrast", "posterize")] == (
        pytest.approx([0.99, 135, 32, 0.99, 2])
    )
    assert trivial_strengths(15 / (TRIVIAL_LEVELS - 1))["solarize"] == 128


def operate(name: str, images: Tensor, strength: float) -> Tensor:
    """One operation at one strength on every picture of a batch."""
    numbers = torch.full(images.shape[:1], OPERATIONS.index(name))
    return apply_operations(images, numbers, torch.full(images.shape[:1], strength))


def test_level_zero_leaves_the_image_unchanged() -> None:
    images = noise(1)
    for strengths in (auto_strengths(0.0, 16, 20), trivial_strengths(0.0)):
        for name in SIGNED | {"posterize", "solarize"}:
            assert torch.equal(operate(name, images, strengths[name]), images), name


@dataclass(frozen=True)
class Entry:
    """An operation of a policy, its probability and its strength before the sign."""

    name: str
    probability: float
    strength: float


def spread(pictures: Shares, entry: Entry, like_1CHW: Tensor) -> Shares:
    """The pictures and their probabilities after an entry has been offered to each."""
    signs = (1, -1) if entry.name in SIGNED else (1,)
    after: Shares = defaultdict(float)
    for picture, share in pictures.items():
        after[picture] += share * (1 - entry.probability)
        image = torch.frombuffer(bytearray(picture), dtype=torch.uint8).view(like_1CHW.shape)
        for sign in signs:
            changed = operate(entry.name, image, sign * entry.strength)
            after[changed.numpy().tobytes()] += share * entry.probability / len(signs)
    return after


def mixture(image_1CHW: Tensor, alternatives: Sequence[tuple[Entry, ...]]) -> Shares:
    """The pictures that come of drawing one alternative, all alike, and offering its entries in turn."""
    total: Shares = defaultdict(float)
    for entries in alternatives:
        pictures: Shares = {image_1CHW.numpy().tobytes(): 1.0 / len(alternatives)}
        for entry in entries:
            pictures = spread(pictures, entry, image_1CHW)
        for picture, share in pictures.items():
            total[picture] += share
    return {picture: share for picture, share in total.items() if share > 0}


def assert_drawn_as_expected(drawn_BCHW: Tensor, expected: Shares) -> None:
    """Nothing unexpected, everything expected, each within five standard deviations of its frequency."""
    counts = Counter(image.numpy().tobytes() for image in drawn_BCHW)
    assert set(counts) == set(expected)
    for picture, share in expected.items():
        mean = share * len(drawn_BCHW)
        assert abs(counts[picture] - mean) <= 5 * mean**0.5


@SEARCHED
def test_every_auto_augment_entry_comes_as_often_as_the_policy_says(searched: Searched) -> None:
    image = noise(1)
    strengths = [auto_strengths(level / 9, *image.shape[2:]) for level in range(10)]
    alternatives = [
        tuple(Entry(name, probability, strengths[level][name]) for name, probability, level in pair)
        for pair in SUB_POLICIES[searched]
    ]
    drawn = auto_augment(image.repeat(30_000, 1, 1, 1), seeded(0), searched=searched)
    assert_drawn_as_expected(drawn, mixture(image, alternatives))


def test_rand_augment_draws_each_of_its_operations_from_all_alike() -> None:
    image = noise(1)
    strengths = auto_strengths(RAND_STRENGTH, *image.shape[2:])
    entries = [Entry(name, 1.0, strengths[name]) for name in UNLEARNED_OPERATIONS]
    drawn = rand_augment(image.repeat(12_000, 1, 1, 1), seeded(0))
    assert_drawn_as_expected(drawn, mixture(image, list(product(entries, repeat=RAND_OPERATIONS))))


def test_every_trivial_augment_entry_comes_equally_often() -> None:
    image = noise(1)
    levels = [trivial_strengths(level / (TRIVIAL_LEVELS - 1)) for level in range(TRIVIAL_LEVELS)]
    alternatives = [(Entry(name, 1.0, level[name]),) for name in UNLEARNED_OPERATIONS for level in levels]
    drawn = trivial_augment(image.repeat(30_000, 1, 1, 1), seeded(0))
    assert_drawn_as_expected(drawn, mixture(image, alternatives))


def test_a_batch_is_no_more_than_its_samples() -> None:
    images = noise(90)
    generator = seeded(8)
    operation_B = torch.randint(0, len(OPERATIONS), (90,), generator=generator)
    strength_B = torch.rand(90, generator=generator) * 0.9
    together = apply_operations(images, operation_B, strength_B)
    assert set(operation_B.tolist()) == set(range(len(OPERATIONS)))
    for place, number in enumerate(operation_B.tolist()):
        own = slice(place, place + 1)
        assert torch.equal(together[own], operate(OPERATIONS[number], images[own], float(strength_B[place])))
