"""The attack on the embedded model, and what the limits of clients hold against it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.slowdown import Attack, confidences, slowed
from models.bundle import EMBEDDED, Bundle, load_bundle
from models.cost import count_cost
from models.exit_policy import ExitRule, exits_taken
from server.limits import ClientLedger, ClientLimits, Cost
from tests.bundles import tiny_bundle
from training.data.cifar import read_cifar

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
        tuple(spent[exit - 1] for exit in taken(bundle, slowed(bundle, clean_NHWC, Attack(steps=STEPS)))),
        spent[-1],
    )


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
    attack = Attack(reach=8, steps=3, batch_size=2, seed=1)
    found = slowed(bundle, clean_NHWC, attack)
    moved = np.abs(found.astype(int) - clean_NHWC)
    assert found.dtype == np.uint8
    assert 0 < moved.max() <= 8
    assert np.array_equal(found, slowed(bundle, clean_NHWC, attack))


def test_the_early_exits_of_any_network_are_less_confident_after_the_attack() -> None:
    bundle, clean_NHWC = tiny_bundle(), noise(8)
    before_NK = confidences(bundle, clean_NHWC)
    after_NK = confidences(bundle, slowed(bundle, clean_NHWC))
    assert after_NK[:, :-1].mean() < before_NK[:, :-1].mean()


def admitted(ledger: ClientLedger, spent: tuple[int, ...], worst: float, until_s: float) -> tuple[float, int]:
    """Multiply-adds that a client spends who asks a hundred times a second, each picture answered in 10 ms."""
    total, count = 0.0, 0
    for number in range(round(100 * until_s)):
        now_s = number / 100
        if ledger.too_much("attacker", Cost(worst), now_s, contended=True) is None:
            with ledger.charged("attacker", Cost(worst), partial(float, now_s)) as charge:
                charge.spent = Cost(float(spent[number % len(spent)]))
            total, count = total + charge.spent.total, count + 1
    return total, count


def test_attacked_or_not_a_client_spends_no_more_than_it_is_allowed(depths: Depths) -> None:
    limits = ClientLimits(compute_per_s=20.0 * depths.full, burst_s=1.0)
    until_s = 5.0
    allowed = limits.compute_per_s * (limits.burst_s + until_s)
    attacked, few = admitted(ClientLedger(limits), depths.attacked, depths.full, until_s)
    clean, many = admitted(ClientLedger(limits), depths.clean, depths.full, until_s)
    assert max(attacked, clean) <= allowed
    # What easy pictures did not need is given back: the same allowance answers more of them.
    assert many > 1.2 * few


def test_pictures_at_once_are_taken_in_as_if_all_went_to_full_depth(depths: Depths) -> None:
    ledger = ClientLedger(ClientLimits(compute_per_s=1.0, burst_s=4.0 * depths.full))
    held = [ledger.charged("attacker", Cost(depths.full), lambda: 0.0) for _ in range(4)]
    for charge in held:
        assert ledger.too_much("attacker", Cost(depths.full), 0.0, contended=False) is None
        charge.__enter__()
    assert ledger.too_much("attacker", Cost(depths.full), 0.0, contended=False) is not None
    assert ledger.too_much("honest", Cost(depths.full), 0.0, contended=False) is None
    for charge in held:
        charge.__exit__(None, None, None)
