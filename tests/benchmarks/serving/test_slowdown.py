"""The attack on the embedded model, and the limits of clients against it."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.serving.trust.slowdown import SlowdownAttack, probabilities, slow_down
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle
from offramp.models.cost import count_cost
from offramp.models.exit_policy import ExitRule, exits_taken
from offramp.server.request.client_limits import ClientLedger, ClientLimits, Cost, LimitReached
from offramp.training.data.cifar import read_cifar
from tests.bundles import tiny_bundle

PICTURES, STEPS = 32, 5


@dataclass(frozen=True)
class Depths:
    """Multiply-adds that pictures spend at the default threshold, by picture, and at full depth."""

    clean: tuple[int, ...]
    attacked: tuple[int, ...]
    full: int


@pytest.fixture(scope="module")
def depths(data_root: Path) -> Depths:
    bundle = load_bundle(EMBEDDED)
    clean_NHWC = np.asarray(read_cifar("cifar100", data_root).test.images_NHWC[:PICTURES])
    spent = count_cost(bundle.config).sequential_multiply_adds
    return Depths(
        tuple(spent[exit - 1] for exit in taken(bundle, clean_NHWC)),
        tuple(spent[exit - 1] for exit in taken(bundle, slow_down(bundle, clean_NHWC, SlowdownAttack(steps=STEPS)))),
        spent[-1],
    )


def confidences(bundle: Bundle, pictures_NHWC: np.ndarray) -> np.ndarray:
    bundle.net.eval()
    with torch.inference_mode():
        return probabilities(bundle, torch.from_numpy(pictures_NHWC)).amax(dim=2).T.numpy()


def taken(bundle: Bundle, pictures_NHWC: np.ndarray) -> list[int]:
    rule = ExitRule.uniform(bundle.threshold, bundle.net.num_exits)
    return exits_taken(confidences(bundle, pictures_NHWC), rule).tolist()


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_attacked_pictures_go_deeper(depths: Depths) -> None:
    assert sum(depths.attacked) > 0.9 * PICTURES * depths.full
    assert sum(depths.clean) < 0.8 * PICTURES * depths.full


def test_a_picture_is_changed_within_reach_and_the_same_for_the_same_seed() -> None:
    bundle, clean_NHWC = tiny_bundle(), noise(3)
    attack = SlowdownAttack(reach=8, steps=3, batch_size=2, seed=1)
    attacked_NHWC = slow_down(bundle, clean_NHWC, attack)
    moved = np.abs(attacked_NHWC.astype(int) - clean_NHWC)
    assert attacked_NHWC.dtype == np.uint8
    assert 0 < moved.max() <= 8
    assert np.array_equal(attacked_NHWC, slow_down(bundle, clean_NHWC, attack))


def test_the_early_exits_of_any_network_are_less_confident_after_the_attack() -> None:
    bundle, clean_NHWC = tiny_bundle(), noise(8)
    before_NK = confidences(bundle, clean_NHWC)
    after_NK = confidences(bundle, slow_down(bundle, clean_NHWC))
    assert after_NK[:, :-1].mean() < before_NK[:, :-1].mean()


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def admitted(limits: ClientLimits, spent: tuple[int, ...], worst: float, until_s: float) -> tuple[float, int]:
    """Multiply-adds and requests of a client that asks a hundred times a second; each is answered at once."""
    total, count, clock = 0.0, 0, Clock()
    ledger = ClientLedger(limits, clock=clock)
    for number in range(round(100 * until_s)):
        clock.now_s = number / 100
        with suppress(LimitReached), ledger.request("attacker", Cost(worst)) as reservation:
            reservation.reserve(Cost(worst), contended=True)
            cost = Cost(float(spent[number % len(spent)]))
            reservation.spend(cost)
            total, count = total + cost.total, count + 1
    return total, count


def test_attacked_or_not_a_client_spends_no_more_than_it_is_allowed(depths: Depths) -> None:
    limits = ClientLimits(compute_per_s=20.0 * depths.full, burst_s=1.0)
    until_s = 5.0
    allowed = limits.compute_per_s * (limits.burst_s + until_s)
    attacked, few = admitted(limits, depths.attacked, depths.full, until_s)
    clean, many = admitted(limits, depths.clean, depths.full, until_s)
    assert max(attacked, clean) <= allowed
    # The compute that easy pictures did not need is returned: the same allowance answers more of them.
    assert many > 1.2 * few


def test_pictures_at_once_are_charged_as_if_all_went_to_full_depth(depths: Depths) -> None:
    limits = ClientLimits(compute_per_s=1.0, burst_s=4.0 * depths.full)
    ledger, full = ClientLedger(limits, clock=lambda: 0.0), Cost(depths.full)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(ledger.request("attacker", full)).reserve(full, contended=False)
        with pytest.raises(LimitReached), ledger.request("attacker", full):
            pass
        with ledger.request("honest", full) as reservation:
            reservation.reserve(full, contended=False)
