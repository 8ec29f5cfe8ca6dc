"""The policies: which operation, how strong, how often; and a batch is no more than its samples."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from training.augment_learned import SUB_POLICIES, Searched
from training.augment_policies import (
    OPERATIONS,
    SIGNED,
    UNLEARNED_OPERATIONS,
    Border,
    apply_operations,
    auto_augment,
    auto_magnitudes,
    rand_augment,
    rand_magnitudes,
    trivial_augment,
    trivial_magnitudes,
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
    assert augmented.is_contiguous(memory_format=layout)
    assert torch.equal(images, untouched)


@EVERY
def test_layout_does_not_change_the_result(policy: Policy) -> None:
    images = noise(64)
    interleaved = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(policy(images, seeded(4)), policy(interleaved, seeded(4)))


@EVERY
def test_images_must_be_eight_bit(policy: Policy) -> None:
    with pytest.raises(ValueError, match="uint8"):
        policy(torch.zeros(2, 3, 8, 8), seeded(0))


@EVERY
def test_fill_reaches_the_geometric_operations(policy: Policy) -> None:
    blue = torch.tensor((0, 0, 255), dtype=torch.uint8).view(1, 3, 1, 1)
    augmented = policy(noise(256), seeded(0), (0, 0, 255))
    assert (augmented == blue).all(1).flatten(1).any(1).sum() > 20


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
    strengths = auto_magnitudes(height=64, width=32)
    assert strengths["shear_x"][9] == pytest.approx(0.3)
    assert strengths["rotate"][2] == pytest.approx(30 * 2 / 9)
    assert strengths["translate_x"] == (0, 1, 3, 4, 6, 8, 9, 11, 12, 14)
    assert strengths["translate_y"][9] == 29
    assert strengths["brightness"] == pytest.approx([0.1 * level for level in range(10)])
    assert strengths["posterize"] == (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)
    assert strengths["solarize"][0] == 256
    assert strengths["solarize"][9] == 0


def test_rand_augment_at_ten_is_as_strong_as_auto_augment_can_be() -> None:
    strengths, strongest = rand_magnitudes(height=64, width=32), auto_magnitudes(height=64, width=32)
    assert {len(of_one) for of_one in strengths.values()} == {21}
    assert {name: of_one[10] for name, of_one in strengths.items()} == pytest.approx(
        {name: of_one[9] for name, of_one in strongest.items()}
    )


def test_beyond_ten_rand_augment_moves_further_and_colours_no_more() -> None:
    strengths = rand_magnitudes(height=64, width=32)
    assert strengths["rotate"][14] == pytest.approx(42)
    assert strengths["shear_y"][20] == pytest.approx(0.6)
    assert strengths["translate_x"][15] == int(1.5 * 32 * 150 / 331)
    assert [strengths[name][20] for name in ("contrast", "posterize", "solarize")] == pytest.approx([0.9, 4, 0])


@pytest.mark.parametrize(
    ("operations", "magnitude", "message"),
    [(0, 9, "rand_operations is 0; give 1"), (2, -1, "rand_magnitude is -1; give 0 to 20"), (2, 21, "is 21")],
)
def test_rand_augment_refuses_what_it_does_not_have(operations: int, magnitude: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rand_augment(noise(1), seeded(0), operations=operations, magnitude=magnitude)


def test_trivial_augment_strengths_are_those_of_its_wide_space() -> None:
    strengths = trivial_magnitudes()
    assert {len(of_one) for of_one in strengths.values()} == {31}
    assert [strengths[name][30] for name in ("shear_y", "rotate", "translate_x", "contrast", "posterize")] == (
        pytest.approx([0.99, 135, 32, 0.99, 2])
    )
    assert strengths["solarize"][15] == 128


def test_level_zero_leaves_the_image_as_it_is() -> None:
    images = noise(1)
    for strengths in (auto_magnitudes(16, 20), rand_magnitudes(16, 20), trivial_magnitudes()):
        for name in SIGNED | {"posterize", "solarize"}:
            kept = OPERATIONS[name](images, torch.tensor([strengths[name][0]]), Border())
            assert torch.equal(kept, images), name


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
            changed = OPERATIONS[entry.name](image, torch.tensor([sign * entry.strength]), Border())
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
    strengths = auto_magnitudes(*image.shape[2:])
    alternatives = [
        tuple(Entry(name, probability, strengths[name][level]) for name, probability, level in pair)
        for pair in SUB_POLICIES[searched]
    ]
    drawn = auto_augment(image.repeat(30_000, 1, 1, 1), seeded(0), searched=searched)
    assert_drawn_as_expected(drawn, mixture(image, alternatives))


@pytest.mark.parametrize(("operations", "magnitude", "draws"), [(1, 4, 3000), (2, 13, 12_000)])
def test_rand_augment_draws_each_of_its_operations_from_all_alike(operations: int, magnitude: int, draws: int) -> None:
    image = noise(1)
    strengths = rand_magnitudes(*image.shape[2:])
    entries = [Entry(name, 1.0, strengths[name][magnitude]) for name in UNLEARNED_OPERATIONS]
    many = image.repeat(draws, 1, 1, 1)
    drawn = rand_augment(many, seeded(0), operations=operations, magnitude=magnitude)
    assert_drawn_as_expected(drawn, mixture(image, list(product(entries, repeat=operations))))


def test_every_trivial_augment_entry_comes_equally_often() -> None:
    image = noise(1)
    strengths = trivial_magnitudes()
    alternatives = [(Entry(name, 1.0, strength),) for name in UNLEARNED_OPERATIONS for strength in strengths[name]]
    drawn = trivial_augment(image.repeat(30_000, 1, 1, 1), seeded(0))
    assert_drawn_as_expected(drawn, mixture(image, alternatives))


def test_a_batch_is_no_more_than_its_samples() -> None:
    images = noise(90)
    generator = seeded(8)
    operation_B = torch.randint(0, len(OPERATIONS), (90,), generator=generator)
    strength_B = torch.rand(90, generator=generator) * 0.9
    together = apply_operations(images, operation_B, strength_B, Border())
    names = list(OPERATIONS)
    assert set(operation_B.tolist()) == set(range(len(names)))
    for place, operation in enumerate(operation_B.tolist()):
        own = slice(place, place + 1)
        assert torch.equal(together[own], OPERATIONS[names[operation]](images[own], strength_B[own], Border()))
