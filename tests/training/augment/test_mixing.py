"""mixup and CutMix mix pictures and labels by the same share, whose distribution is the papers'."""

from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor

from offramp.training.augment.mixing import Mixing, one_hot, symmetric_beta
from tests.devices import DEVICES, LAYOUTS

MIXINGS = pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)])


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def noise(batch: int, height: int = 12, width: int = 17, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, channels, height, width), generator=seeded(9)).to(torch.uint8)


@dataclass(frozen=True)
class Mixed:
    """A mixed picture, with its own place, its partner's place and its share, as its label gives them."""

    image_CHW: Tensor
    own: int
    partner: int
    share: float


def mix_distinct(mixing: Mixing, images_BCHW: Tensor, seed: int = 0) -> list[Mixed]:
    """Mix a batch of different labels, which give partner and share. Unmixed pictures are left out."""
    targets_BC = torch.eye(len(images_BCHW), dtype=torch.float64)
    mixed_BCHW, mixed_BC = mixing(images_BCHW, targets_BC, seeded(seed))
    mixed: list[Mixed] = []
    for own, (image_CHW, target_C) in enumerate(zip(mixed_BCHW, mixed_BC, strict=True)):
        others = [place for place in target_C.nonzero().flatten().tolist() if place != own]
        assert len(others) <= 1
        mixed += [Mixed(image_CHW, own, partner, float(target_C[own])) for partner in others]
    return mixed


def plain(batch: int, height: int = 12, width: int = 17) -> Tensor:
    """Each picture of one value, its place in the batch."""
    return torch.arange(batch, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, height, width)


def test_mixup_is_the_weighted_mean_rounded_to_nearest() -> None:
    images = noise(40)
    mixed = mix_distinct(Mixing(mixup=1.0), images)
    assert len(mixed) > 30
    for item in mixed:
        exact = item.share * images[item.own].double() + (1 - item.share) * images[item.partner].double()
        assert (item.image_CHW.double() - exact).abs().max() <= 0.5 + 1e-4


def test_cutmix_inserts_one_box_of_the_partner_and_mixes_labels_by_its_true_area() -> None:
    for item in mix_distinct(Mixing(cutmix=1.0), plain(250)):
        assert (item.image_CHW == item.image_CHW[0]).all()
        hidden_HW = item.image_CHW[0] == item.partner
        assert (item.image_CHW[0][~hidden_HW] == item.own).all()
        rows, columns = hidden_HW.any(1).nonzero().flatten(), hidden_HW.any(0).nonzero().flatten()
        assert hidden_HW.sum() == len(rows) * len(columns)
        assert hidden_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert item.share == pytest.approx(1 - int(hidden_HW.sum()) / (12 * 17), abs=1e-12)


def test_cutmix_boxes_have_the_proportions_of_the_picture_and_lie_anywhere() -> None:
    covered_HW = torch.zeros(24, 36, dtype=torch.int64)
    mixed = mix_distinct(Mixing(cutmix=1.0), plain(250, 24, 36))
    for item in mixed:
        hidden_HW = item.image_CHW[0] == item.partner
        covered_HW += hidden_HW
        rows, columns = hidden_HW.any(1).nonzero().flatten(), hidden_HW.any(0).nonzero().flatten()
        clipped = rows[0] == 0 or columns[0] == 0 or rows[-1] == 23 or columns[-1] == 35
        assert clipped or abs(len(rows) / 24 - len(columns) / 36) <= 2 / 24
    assert (covered_HW > 0).all()
    assert (covered_HW < len(mixed)).all()


def test_the_picture_in_the_box_comes_from_the_same_place() -> None:
    images = noise(40)
    for item in mix_distinct(Mixing(cutmix=1.0), images):
        from_own, from_partner = (item.image_CHW == images[item.own], item.image_CHW == images[item.partner])
        assert (from_own | from_partner).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_of_mixup_are_beta_distributed(alpha: float) -> None:
    shares = [item.share for item in mix_distinct(Mixing(mixup=alpha), torch.zeros(3000, 1, 1, 1, dtype=torch.uint8))]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 30.0])
def test_draws_are_symmetric_and_finite_for_every_alpha(alpha: float) -> None:
    drawn_N = symmetric_beta(alpha, 4000, seeded(0))
    assert ((drawn_N >= 0) & (drawn_N <= 1)).all()
    assert float(drawn_N.mean()) == pytest.approx(0.5, abs=5 * stats.beta(alpha, alpha).std() / 4000**0.5)
    assert float(drawn_N.std()) == pytest.approx(stats.beta(alpha, alpha).std(), rel=0.05)


def test_shares_of_cutmix_are_those_of_beta_after_clipping() -> None:
    _, mixed_BC = Mixing(cutmix=1.0)(noise(750, 128, 128, 1), torch.eye(750), seeded(0))
    # A side s of a picture of side 1, centred anywhere, keeps s - s²/4 on average, both sides alike; s² is uniform,
    # so the mean of (s - s²/4)² is 1/2 - 1/5 + 1/48.
    assert float(1 - mixed_BC.diag().mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=5 * 0.25 / 750**0.5)


def is_cut(images_BCHW: Tensor) -> bool:
    return bool(((images_BCHW == 0) | (images_BCHW == 200)).all())


def test_with_both_on_each_batch_gets_one_of_them_equally_often() -> None:
    images = (torch.arange(16, dtype=torch.uint8) % 2 * 200).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)
    targets, generator, mixing = one_hot(torch.arange(16) % 2, 2), seeded(0), Mixing(mixup=5.0, cutmix=1.0)
    cut = sum(is_cut(mixing(images, targets, generator)[0]) for _ in range(400))
    assert abs(cut - 200) < 5 * 100**0.5


@pytest.mark.parametrize("mixing", [Mixing(mixup=1.0), Mixing(cutmix=1.0)])
def test_every_batch_is_mixed(mixing: Mixing) -> None:
    generator = seeded(0)
    images, targets = plain(8), torch.eye(8)
    mixed = sum(not torch.equal(mixing(images, targets, generator)[1], targets) for _ in range(300))
    # A permutation of eight, or eight empty boxes, may leave a batch unchanged, seldom.
    assert mixed >= 299


def test_every_picture_has_its_own_share() -> None:
    shares = [item.share for item in mix_distinct(Mixing(mixup=1.0), plain(100))]
    assert len(set(shares)) == len(shares) > 90


@MIXINGS
def test_labels_stay_probabilities_smoothed_or_not(mixing: Mixing) -> None:
    for smoothing in (0.0, 0.1):
        targets = one_hot(torch.arange(64) % 7, 7, smoothing)
        _, mixed_BC = mixing(noise(64), targets, seeded(0))
        assert mixed_BC.dtype == torch.float32
        assert torch.allclose(mixed_BC.sum(1), torch.ones(64), atol=1e-6)
        assert mixed_BC.min() >= 0
        assert not torch.equal(mixed_BC, targets)


@DEVICES
@MIXINGS
def test_one_seed_gives_one_result_and_the_input_is_left_alone(mixing: Mixing, device: str) -> None:
    images, targets = noise(32).to(device), torch.eye(32, device=device)

    def mix(seed: int) -> tuple[Tensor, Tensor]:
        return mixing(images, targets, seeded(seed, device))

    assert all(torch.equal(first, second) for first, second in zip(mix(1), mix(1), strict=True))
    assert not torch.equal(mix(1)[0], mix(2)[0])
    assert not torch.equal(mix(1)[1], mix(2)[1])
    assert torch.equal(images.cpu(), noise(32))
    assert torch.equal(targets.cpu(), torch.eye(32))


@DEVICES
@MIXINGS
@LAYOUTS
def test_layout_does_not_change_the_result_and_is_kept(
    mixing: Mixing, layout: torch.memory_format, device: str
) -> None:
    images, targets = noise(32).to(device), torch.eye(32, device=device)
    mixed_BCHW, mixed_BC = mixing(images.contiguous(memory_format=layout), targets, seeded(1, device))
    expected_BCHW, expected_BC = mixing(images, targets, seeded(1, device))
    assert mixed_BCHW.is_contiguous(memory_format=layout)
    assert mixed_BCHW.dtype == torch.uint8
    assert torch.equal(mixed_BCHW, expected_BCHW)
    assert torch.equal(mixed_BC, expected_BC)


@MIXINGS
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_partners_stays_as_it_is(mixing: Mixing, batch: int) -> None:
    images, targets = noise(batch), torch.eye(3)[:batch]
    mixed_BCHW, mixed_BC = mixing(images, targets, seeded(0))
    assert torch.equal(mixed_BCHW, images)
    assert torch.allclose(mixed_BC, targets)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@MIXINGS
def test_mixing_never_waits_for_the_gpu(mixing: Mixing) -> None:
    images, labels, generator = noise(32).cuda(), torch.arange(32).cuda(), seeded(0, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixing(images, one_hot(labels, 32, 0.1), generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_mixing_that_is_off_does_and_draws_nothing() -> None:
    images, targets, generator = noise(8), torch.eye(8), seeded(0)
    mixed_BCHW, mixed_BC = Mixing()(images, targets, generator)
    assert not Mixing().enabled
    assert mixed_BCHW is images
    assert mixed_BC is targets
    assert torch.equal(generator.get_state(), seeded(0).get_state())


def test_mixing_is_on_with_either() -> None:
    assert Mixing(mixup=0.2).enabled
    assert Mixing(cutmix=1.0).enabled


def test_labels_become_probabilities() -> None:
    labels = torch.tensor([2, 0])
    assert torch.equal(one_hot(labels, 3), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    smoothed = torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    assert torch.allclose(one_hot(labels, 4, 0.1), smoothed)
    assert one_hot(labels[:0], 4).shape == (0, 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probabilities_give_the_cross_entropy_of_the_labels(smoothing: float) -> None:
    logits, labels = torch.randn(9, 5, generator=seeded(0)), torch.arange(9) % 5
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert torch.allclose(torch.nn.functional.cross_entropy(logits, one_hot(labels, 5, smoothing)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -0.1}, "mixup is -0.1; give 0"),
        ({"mixup": float("nan")}, "mixup is nan"),
        ({"cutmix": float("inf")}, "cutmix is inf.*finite"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(**options)
