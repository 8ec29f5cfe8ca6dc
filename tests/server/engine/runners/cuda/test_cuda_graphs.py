"""CudaGraphRunner against TorchRunner: slots, padding, gather and scatter on any machine, CUDA graphs where there are.

On a CPU the same work is done anew in place of replaying a graph; all that stands around it is the same code.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from offramp.models.bundle import Bundle
from offramp.models.device import choose_device
from offramp.models.exit_policy import ExitRule, exits_taken
from offramp.models.preprocess import normalize
from offramp.server.engine.engine import Engine
from offramp.server.engine.request import Contract, ExitPlan
from offramp.server.engine.runners.agreement import probabilities
from offramp.server.engine.runners.cuda.buckets import buckets
from offramp.server.engine.runners.cuda.capture import Capture, CudaGraphs, Eager, Work, record
from offramp.server.engine.runners.cuda.cuda_graphs import CaptureFailed, CudaGraphRunner, scale_and_shift
from offramp.server.engine.runners.cuda.slots import PADDING_ROW, OutOfSlots
from offramp.server.engine.runners.torch_runner import TorchRunner
from tests.devices import TOLERANCES, assert_near
from tests.server.engine.lively import SIZE, draw_pictures, lively_bundle
from tests.server.engine.scripted import Recorder

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, EXITS, PICTURES, LARGEST = 10, 4, 96, 64
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
# Of probabilities, and of shares of changed exits and labels; some three times what this network showed on a CPU.
MARGINS = {torch.float32: TOLERANCES["cuda"], torch.float16: 0.03, torch.bfloat16: 0.2}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]


@dataclass(frozen=True)
class Agreement:
    """How far one runner's answers are from another's.

    largest_difference: of any probability at any exit. changed_exits: by threshold, the share of pictures that leave
    elsewhere. changed_labels: the share of (picture, exit) with another most probable class.
    """

    largest_difference: float
    changed_exits: dict[float, float]
    changed_labels: float


def agreement(mine_KNC: np.ndarray, theirs_KNC: np.ndarray, thresholds: Sequence[float]) -> Agreement:
    """From the probabilities (K, N, classes) of the same pictures."""

    def exits(probabilities_KNC: np.ndarray, threshold: float) -> np.ndarray:
        return exits_taken(probabilities_KNC.max(axis=2).T, ExitRule.uniform(threshold, len(probabilities_KNC)))

    return Agreement(
        float(np.abs(mine_KNC - theirs_KNC).max()),
        {each: float((exits(mine_KNC, each) != exits(theirs_KNC, each)).mean()) for each in thresholds},
        float((mine_KNC.argmax(axis=2) != theirs_KNC.argmax(axis=2)).mean()),
    )


def clear_threshold(probabilities_KNC: np.ndarray, quantile: float) -> float:
    """Near this quantile of all confidences and as far as can be from any, so that rounding decides nothing."""
    confidences = np.sort(probabilities_KNC.max(axis=2), axis=None)
    at = round(quantile * (len(confidences) - 1))
    near = confidences[max(0, at - 8) : at + 9]
    gap = int(np.diff(near).argmax())
    assert near[gap + 1] - near[gap] > 10 * max(TOLERANCES.values())
    return float(near[gap : gap + 2].mean())


@dataclass
class Counted:
    """A Capture that counts, and on a GPU lets the host wait nowhere but in `wait` while `strict`."""

    inner: Capture
    strict: bool = False
    captured: int = 0
    calls: list[str] = field(default_factory=list)
    last_replayed: int = 0

    def reset(self) -> None:
        self.inner.reset()

    def capture(self, work: Work) -> Work:
        self.captured += 1
        number, replay = self.captured, self.inner.capture(work)

        def counted() -> None:
            self.calls.append("replay")
            self.last_replayed = number
            replay()

        return counted

    def wait(self) -> None:
        self.calls.append("wait")
        if self.strict:
            torch.cuda.set_sync_debug_mode("default")
        self.inner.wait()
        if self.strict:
            torch.cuda.set_sync_debug_mode("error")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return draw_pictures(PICTURES)


@pytest.fixture(scope="module")
def bundle(pictures: list[np.ndarray]) -> Bundle:
    return lively_bundle(pictures)


@pytest.fixture(scope="module")
def reference_KNC(bundle: Bundle, pictures: list[np.ndarray]) -> np.ndarray:
    """TorchRunner's answers on the CPU, each picture alone."""
    return probabilities(TorchRunner(bundle, torch.device("cpu")), pictures, batch_size=1)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return choose_device(request.param)


@pytest.fixture
def capture(device: torch.device) -> Counted:
    return Counted(CudaGraphs(device) if device.type == "cuda" else Eager())


@pytest.fixture
def make_runner(bundle: Bundle, device: torch.device, capture: Counted):
    def make(max_batch_size: int = 8, max_samples: int = 128, precision: str = "float32") -> CudaGraphRunner:
        runner = CudaGraphRunner(bundle, device, max_samples=max_samples, precision=precision, capture=capture)
        runner.warm_up(max_batch_size)
        return runner

    return make


def poison(runner: CudaGraphRunner) -> None:
    """NaN into every row that nobody holds, the padding's included: whoever reads one shows it."""
    for boundary in runner.boundaries:
        rows = torch.tensor([PADDING_ROW, *boundary.pool.free_rows], device=runner.device)
        boundary.features_SHWC.index_fill_(0, rows, float("nan"))
        boundary.accumulated_SC.index_fill_(0, rows, float("nan"))
    if runner.device.type == "cuda":
        torch.cuda.synchronize()


def held(runner: CudaGraphRunner) -> list[int]:
    """Slots in use behind each stage."""
    return [boundary.pool.capacity - len(boundary.pool.free_rows) for boundary in runner.boundaries]


# ---- the same answers as the reference -------------------------------------------------------------------------------


def test_the_pictures_tell_exits_and_classes_apart(reference_KNC):
    """Guards the tests below: with a network that answers everything alike they would prove nothing."""
    rule = ExitRule.uniform(clear_threshold(reference_KNC, 0.5), EXITS)
    assert set(exits_taken(reference_KNC.max(axis=2).T, rule)) == {1, 2, 3, 4}
    assert all(len(set(labels_N)) >= 5 for labels_N in reference_KNC.argmax(axis=2))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 9, 32, 49, 64])
def test_in_float32_every_batch_size_gives_the_exits_and_labels_of_the_reference(
    make_runner, reference_KNC, pictures, batch_size, device
):
    mine_KNC = probabilities(make_runner(batch_size), pictures, batch_size)
    thresholds = [clear_threshold(reference_KNC, quantile) for quantile in QUANTILES]
    agreed = agreement(mine_KNC, reference_KNC, [0.0, *thresholds, 1.0])
    assert agreed.largest_difference < TOLERANCES[device.type]
    assert set(agreed.changed_exits.values()) == {0.0}
    assert agreed.changed_labels == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_interleaved_stages_random_survivors_and_drops_never_mix_samples_up(make_runner, reference_KNC, pictures, seed):
    runner, draws = make_runner(LARGEST, max_samples=256), np.random.default_rng(seed)
    waiting: list[list] = [[] for _ in range(EXITS + 1)]
    sizes = set()
    for _ in range(60):
        deeper = [stage for stage in range(2, EXITS + 1) if waiting[stage - 1]]
        stage = int(draws.choice([1, *deeper]))
        size = int(draws.choice([draws.integers(1, 5), draws.integers(1, LARGEST + 1)]))
        if stage == 1:
            free = 256 - sum(map(len, waiting))
            numbers = [int(n) for n in draws.integers(0, PICTURES, max(1, min(size, free)))]
            states: list = [pictures[n] for n in numbers]
        else:
            draws.shuffle(waiting[stage - 1])
            chosen, waiting[stage - 1] = waiting[stage - 1][:size], waiting[stage - 1][size:]
            numbers, states = [number for number, _ in chosen], [state for _, state in chosen]
            del chosen
        poison(runner)
        output = runner.run(stage, states)
        assert_near(output.probabilities_BC, reference_KNC[stage - 1, numbers], runner.device)
        sizes.add(len(numbers))
        rows = [row for row in range(len(numbers)) if stage < EXITS and draws.random() < 0.7]
        waiting[stage] += zip([numbers[row] for row in rows], output.keep(rows), strict=True)
        # Clients that are gone.
        waiting[stage] = [sample for sample in waiting[stage] if draws.random() > 0.1]
        del states, output
        assert held(runner) == [len(samples) for samples in waiting[1:EXITS]]
    assert len(sizes) > 20
    waiting.clear()
    assert held(runner) == [0] * (EXITS - 1)


async def test_in_the_engine_with_mixed_contracts_and_clients_that_leave(make_runner, reference_KNC, pictures, device):
    runner = make_runner(16)
    engine = Engine(runner, Recorder(), max_batch_size=16, max_samples=160, max_wait_s=3600.0, clock=time.monotonic)
    engine.start(asyncio.get_running_loop())
    rules = [ExitRule.uniform(clear_threshold(reference_KNC, quantile), EXITS) for quantile in QUANTILES]

    async def client(client_number: int) -> int:
        draws, rule = np.random.default_rng(client_number), rules[client_number % len(rules)]
        numbers = [int(n) for n in draws.integers(0, PICTURES, 2)]
        futures = engine.submit([pictures[n] for n in numbers], Contract(ExitPlan(rule)))
        if client_number % 5 == 4:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            futures[1].cancel()
            return 0
        for number, answer in zip(numbers, await asyncio.gather(*futures), strict=True):
            assert answer.exit == exits_taken(reference_KNC[:, number : number + 1].max(axis=2).T, rule)[0]
            assert_near(answer.probabilities_C, reference_KNC[answer.exit - 1, number], runner.device)
        return len(numbers)

    try:
        assert sum(await asyncio.gather(*(client(number) for number in range(64)))) > 90
    finally:
        await engine.drain()
    assert held(runner) == [0] * (EXITS - 1)


def test_pixels_are_normalised_as_everywhere(bundle, device):
    scale_C, shift_C = scale_and_shift(bundle.preprocessing, device)
    pixels_BHWC = torch.arange(256, dtype=torch.uint8, device=device).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    mine_BCHW = torch.addcmul(shift_C, pixels_BHWC.float(), scale_C).permute(0, 3, 1, 2)
    torch.testing.assert_close(mine_BCHW, normalize(pixels_BHWC, bundle.preprocessing), rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_the_bits_change_little(make_runner, reference_KNC, pictures, precision):
    runner = make_runner(32, precision=precision)
    margin = MARGINS[runner.dtype]
    assert {boundary.features_SHWC.dtype for boundary in runner.boundaries} == {runner.dtype}
    assert {boundary.accumulated_SC.dtype for boundary in runner.boundaries} == {torch.float32}
    mine_KNC = probabilities(runner, pictures, 32)
    agreed = agreement(mine_KNC, reference_KNC, [clear_threshold(reference_KNC, quantile) for quantile in QUANTILES])
    assert 0.0 < agreed.largest_difference < margin
    assert max(agreed.changed_exits.values()) < margin
    assert agreed.changed_labels < margin
    assert mine_KNC.sum(axis=2) == pytest.approx(1.0, abs=1e-5)


# ---- slots -----------------------------------------------------------------------------------------------------------


def test_those_who_left_give_their_slots_back_at_once_and_survivors_with_their_state(make_runner, pictures):
    runner = make_runner(8)
    output = runner.run(1, pictures[:8])
    assert held(runner) == [8, 0, 0]
    kept = list(output.keep([1, 4, 6]))
    assert held(runner) == [3, 0, 0]
    deeper = runner.run(2, kept).keep([0, 2])
    assert held(runner) == [3, 2, 0]
    del kept
    assert held(runner) == [0, 2, 0]
    dropping = threading.Thread(target=deeper.clear)
    dropping.start()
    dropping.join()
    assert held(runner) == [0, 0, 0]


def test_a_step_whose_answers_nobody_took_holds_nothing(make_runner, pictures):
    runner = make_runner(8)
    runner.run(1, pictures[:5])
    assert held(runner) == [0, 0, 0]


def test_a_step_can_be_run_again_each_sample_alone(make_runner, reference_KNC, pictures):
    runner = make_runner(8)
    states = runner.run(1, pictures[:5]).keep(range(5))
    runner.run(2, states)
    for number, state in enumerate(states):
        poison(runner)
        again_BC = runner.run(2, [state]).probabilities_BC
        assert_near(again_BC[0], reference_KNC[1, number], runner.device)


def test_more_in_flight_than_there_are_slots_is_refused_and_harms_nobody(make_runner, reference_KNC, pictures):
    runner = make_runner(4, max_samples=6)
    states = [state for at in (0, 4) for state in runner.run(1, pictures[at : at + 4]).keep(range(4))]
    with pytest.raises(OutOfSlots, match=r"4 slots after stage 1 .*: 2 of 10 are free; .* for 6 samples in flight"):
        runner.run(1, pictures[8:12])
    states += runner.run(1, pictures[8:10]).keep(range(2))
    for at in (0, 3, 6):
        probabilities_BC = runner.run(2, states[at : at + 4]).probabilities_BC
        assert_near(probabilities_BC, reference_KNC[1, at : at + 4], runner.device)
    del states[:4]
    assert len(runner.run(1, pictures[:4]).keep(range(4))) == 4


def test_answers_stay_as_they_are_when_the_next_step_runs(make_runner, pictures):
    runner = make_runner(4)
    first_BC = runner.run(1, pictures[:4]).probabilities_BC
    before_BC = first_BC.copy()
    runner.run(1, pictures[4:8])
    assert (first_BC == before_BC).all()
    assert first_BC.dtype == np.float32


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_batches_that_it_is_not_warmed_up_for_are_refused(bundle, device, make_runner, pictures):
    with pytest.raises(ValueError, match=r"a batch of 1 is out of range: .* 1 to 0; call warm_up"):
        CudaGraphRunner(bundle, device).run(1, pictures[:1])
    runner = make_runner(4)
    with pytest.raises(ValueError, match=r"a batch of 5 is out of range: .* 1 to 4"):
        runner.run(1, pictures[:5])
    with pytest.raises(ValueError, match="a batch of 0 is out of range"):
        runner.run(1, [])


@pytest.mark.parametrize(
    "picture",
    [np.zeros((SIZE, SIZE, 1), np.uint8), np.zeros((SIZE, SIZE, 3), np.float32), np.zeros((8, 8, 3), np.uint8)],
)
def test_pictures_that_do_not_fit_are_refused_not_stretched(make_runner, pictures, picture):
    runner = make_runner(4)
    with pytest.raises(ValueError, match=r"pictures must be uint8 \(16, 16, 3\)"):
        runner.run(1, [pictures[0], picture])
    assert held(runner) == [0, 0, 0]


def test_states_of_another_stage_or_from_before_a_warm_up_are_refused(make_runner, pictures):
    runner = make_runner(4)
    states = runner.run(1, pictures[:2]).keep(range(2))
    with pytest.raises(ValueError, match="stage 3 takes slots that stage 2 gave"):
        runner.run(3, states)
    runner.warm_up(4)
    with pytest.raises(ValueError, match="stage 2 takes slots that stage 1 gave since the last warm-up"):
        runner.run(2, states)


def test_more_memory_than_there_is_is_refused_by_the_name_of_the_setting(bundle, device, capture):
    runner = CudaGraphRunner(bundle, device, max_samples=2**44, capture=capture)
    with pytest.raises(CaptureFailed, match=r"after stage 1: give a smaller --max-queue or --max-batch-size"):
        runner.warm_up(2)


class Unwilling(Eager):
    def capture(self, work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_stage_that_cannot_be_captured_is_named_with_a_way_out(bundle):
    runner = CudaGraphRunner(bundle, torch.device("cpu"), capture=Unwilling())
    with pytest.raises(
        CaptureFailed, match=r"stage 1 cannot be captured .* 1 samples: operation not permitted .*--runner torch"
    ):
        runner.warm_up(2)


class FailsAsCuda(torch.cuda.graph):
    """torch's own context, over a graph that ends as CUDA's does after what no capture allows."""

    def __init__(self, streams: list[str]) -> None:
        self._enable_annotations = False
        self.cuda_graph = self  # type: ignore[assignment]
        self.stream_ctx = OnStream(streams)  # type: ignore[assignment]

    def __enter__(self) -> None:
        self.stream_ctx.__enter__()

    def capture_end(self) -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@dataclass
class OnStream:
    """The thread's streams, the current one last."""

    streams: list[str]

    def __enter__(self) -> None:
        self.before = self.streams[-1]
        self.streams.append("capture")

    def __exit__(self, *raised: object) -> None:
        self.streams.append(self.before)


class Invalidated(Eager):
    """Warms up as CUDA graphs do; no capture ends well."""

    def __init__(self, streams: list[str]) -> None:
        self.streams = streams

    def capture(self, work: Work) -> Work:
        record(work, OnStream(self.streams), FailsAsCuda(self.streams))
        return work


def test_a_capture_that_fails_names_the_first_cause_and_leaves_the_stream_as_it_was(bundle):
    streams = ["default"]
    runner = CudaGraphRunner(bundle, torch.device("cpu"), capture=Invalidated(streams))
    run_stage, calls = runner.net.run_stage, 0

    def waits_for_the_device(stage: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        # Three sizes are found, and three times the work warms up.
        if calls > 3 + 3:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")
        return run_stage(stage, x)

    runner.net.run_stage = waits_for_the_device  # type: ignore[method-assign]
    with pytest.raises(CaptureFailed, match=r"1 samples: CUDA error: operation not permitted when stream is"):
        runner.warm_up(4)
    assert streams[-1] == "default"


class Noting(Eager):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.pools = 0

    def reset(self) -> None:
        self.pools += 1


def test_one_sample_is_captured_first_and_every_warm_up_has_a_pool_of_its_own(bundle):
    noting = Noting()
    runner = CudaGraphRunner(bundle, torch.device("cpu"), max_samples=8, capture=noting)
    runner.warm_up(8)
    assert [bucket for _, bucket in runner._replays] == [size for size in (1, 8, 4, 2) for _ in range(EXITS)]
    runner.warm_up(8)
    assert noting.pools == 2


# ---- captured once, replayed and waited for once a step --------------------------------------------------------------


def test_everything_is_captured_in_warm_up_and_each_step_is_one_replay_and_one_wait(make_runner, capture, pictures):
    runner = make_runner(12)
    assert capture.captured == EXITS * len(buckets(12))
    for batch_size in (1, 3, 5, 12):
        states: Sequence = pictures[:batch_size]
        for stage in range(1, EXITS + 1):
            capture.calls.clear()
            states = runner.run(stage, states).keep(range(batch_size))
            assert capture.calls == ["replay", "wait"]
    assert capture.captured == EXITS * len(buckets(12))


def test_a_step_replays_the_smallest_graph_that_holds_its_batch(make_runner, capture, pictures):
    runner, used = make_runner(12), {}
    for batch_size in range(1, 13):
        runner.run(1, pictures[:batch_size])
        used[batch_size] = capture.last_replayed
    assert len(set(used.values())) == len(buckets(12))
    assert used[3] == used[4]
    assert used[5] == used[6] == used[7] == used[8]
    assert used[9] == used[10] == used[11] == used[12]


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (32, (1, 2, 4, 8, 12, 16, 24, 32)),
        (40, (1, 2, 4, 8, 12, 16, 24, 32, 40)),
        (64, (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)),
    ],
)
def test_buckets(largest, sizes):
    assert buckets(largest) == sizes


@pytest.mark.parametrize("largest", [9, 17, 100, 256])
def test_at_most_a_third_of_a_larger_batch_is_padding(largest):
    sizes = buckets(largest)
    chosen = {count: min(size for size in sizes if size >= count) for count in range(8, largest + 1)}
    assert all(3 * (size - count) <= size for count, size in chosen.items())


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="max_batch_size 0 is out of range"):
        buckets(0)


def test_the_bundle_and_its_network_stay_as_they_are(bundle, device, make_runner):
    before = {name: value.clone() for name, value in bundle.net.state_dict().items()}
    make_runner(2, precision="float16")
    after = bundle.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@NO_GPU
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_the_host_waits_nowhere_else(bundle, pictures):
    device = choose_device("cuda")
    capture = Counted(CudaGraphs(device))
    runner = CudaGraphRunner(bundle, device, capture=capture)
    runner.warm_up(8)
    states: Sequence = pictures[:5]
    capture.strict = True
    torch.cuda.set_sync_debug_mode("error")
    try:
        for stage in range(1, EXITS + 1):
            states = runner.run(stage, states).keep(range(5))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert capture.calls[-8:] == ["replay", "wait"] * 4


@NO_GPU
@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_on_a_gpu_answers_are_those_of_the_reference_on_it(bundle, pictures, precision):
    device = choose_device("cuda")
    runner = CudaGraphRunner(bundle, device, precision=precision)
    runner.warm_up(LARGEST)
    theirs_KNC = probabilities(TorchRunner(bundle, device), pictures, LARGEST)
    thresholds = [clear_threshold(theirs_KNC, quantile) for quantile in QUANTILES]
    for batch_size in (1, 7, 33, 64):
        agreed = agreement(probabilities(runner, pictures, batch_size), theirs_KNC, thresholds)
        max_share = 1e-9 if runner.dtype == torch.float32 else MARGINS[runner.dtype]
        assert agreed.largest_difference < MARGINS[runner.dtype]
        assert max(agreed.changed_exits.values()) < max_share


@NO_GPU
@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_on_a_gpu_batch_mates_change_answers_by_rounding_only(bundle, pictures, precision, record_property):
    runner = CudaGraphRunner(bundle, choose_device("cuda"), precision=precision)
    runner.warm_up(LARGEST)
    alone_KNC = probabilities(runner, pictures, 1)
    differences = {
        size: float(np.abs(probabilities(runner, pictures, size) - alone_KNC).max()) for size in (2, 5, 17, 64)
    }
    record_property("largest_difference_by_batch_size", differences)
    assert max(differences.values()) < MARGINS[runner.dtype]
