"""OpenVinoRunner: the default on the CPU. Each stage is an OpenVINO network, converted in memory at load."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino as ov

from offramp.models.bundle import Bundle
from offramp.server.engine.runners.all_stages import black_pictures, run_all_stages
from offramp.server.engine.runners.cuda.buckets import buckets
from offramp.server.engine.runners.openvino.blocks import Block, BlockPool, Memory
from offramp.server.engine.runners.openvino.int8 import quantize_stages
from offramp.server.engine.runners.openvino.stages import (
    convert_stages,
    is_first,
    is_last,
    row_shapes,
    sized,
    with_features,
)
from offramp.server.engine.runners.runner import StepOutput

PRECISIONS = ("auto", "float32", "bfloat16", "int8")
HINTS = {"float32": "f32", "bfloat16": "bf16"}
# Type of features between stages, by the precision of the arithmetic, and numpy's type of the same width. Wider
# features would hold the same numbers in twice the memory.
FEATURE_TYPES = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}
WORDS: dict[ov.Type, type[np.generic]] = {ov.Type.f32: np.float32, ov.Type.bf16: np.uint16}

# A batch gets all threads if they are this many times faster than one: HTTP and decoding need the cores too.
WORTH_MORE_THREADS = 1.25
# Unused rows of memory between stages that are kept, until `warm_up` sets the batch size.
SPARE_ROWS = 64
# Measurements of one batch, and their seconds in all. The fastest counts: interruptions only lengthen a measurement.
MOST_MEASURED, MEASURED_S = 10, 0.1


# A tuple: a frozen dataclass takes four times as long to make, and there is one for each picture at each stage.
class StageState(NamedTuple):
    """The state of a sample between stages: its row in the output of a step.

    Features in bfloat16 are stored as uint16, since numpy has no bfloat16.
    """

    block: Block
    row: int


class OpenVinoRunner:
    """Steps as OpenVINO networks: uint8 pictures in, normalisation, stage, head and calibration inside.

    Every stage is compiled for each size of `buckets`, and a batch is padded to the next one. A network for any size
    would spend a fifth of the time on changes of the size. precision: float32, bfloat16, int8 or auto, which is
    bfloat16 if the processor has instructions for it, else float32; operations that int8 leaves in floating point run
    as with auto. pictures: uint8 (H, W, 3), from which int8 learns its ranges. threads: most of one step; 0 for all
    cores. The warm-up measures which small batches run on one thread. seconds: measures work; a test may replace it.
    Raises ValueError for an unknown precision, for int8 without pictures or NNCF, and for a network that OpenVINO
    cannot convert, which TorchRunner can run.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str = "auto",
        threads: int = 0,
        pictures: Sequence[npt.NDArray[np.uint8]] = (),
        seconds: Callable[[Callable[[], object]], float] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        self._core, self._threads, self._seconds = ov.Core(), threads, seconds or fastest_s
        native = native_precision(self._core)
        self.precision = native if precision == "auto" else precision
        # The precision of arithmetic in floating point.
        self._floats = native if precision == "int8" else self.precision
        self._size = bundle.preprocessing.size
        self._buckets: tuple[int, ...] = ()
        # By bucket, after the warm-up.
        self.threads_of: dict[int, int] = {}
        networks = convert_stages(bundle)
        if precision == "int8":
            networks = quantize_stages(networks, pictures)
        feature_type = FEATURE_TYPES[self._floats]
        self._stages = [
            _Stage(with_features(network, feature_type), self.compile, feature_type) for network in networks
        ]

    @property
    def num_stages(self) -> int:
        """K, the stages of the bundle's network."""
        return len(self._stages)

    def compile(self, network: ov.Model, batch_size: int, threads: int | None = None) -> ov.CompiledModel:
        """A network for one batch size, in the runner's precision. threads: None for the runner's."""
        threads = self._threads if threads is None else threads
        # Not bound to cores: a bound thread waits for HTTP work on its core while another core is idle.
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[self._floats],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": "NO",
        }
        limited = {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
        return self._core.compile_model(sized(network, batch_size), "CPU", {**options, **limited})

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        """Run stage 1..K over uint8 (H, W, 3) pictures (stage 1) or StageStates.

        Before `warm_up`, a size is compiled at its first use. After it, raises ValueError for more than its batch size.
        """
        if not self._buckets:
            return self._stages[stage - 1].run(states, len(states))
        if len(states) > self._buckets[-1]:
            raise ValueError(f"{len(states)} samples are out of range: this runner is warm for {self._buckets[-1]}")
        return self._stages[stage - 1].run(states, self._buckets[bisect_left(self._buckets, len(states))])

    def warm_up(self, max_batch_size: int) -> None:
        """Compile every stage for all batch sizes and run it: OpenVINO builds its kernels on first use.

        From the smallest size up, each is measured on one thread too, until more threads are worth it.
        """
        self._buckets = buckets(max_batch_size)
        for stage in self._stages:
            stage.requests.clear()
            if stage.pool is not None:
                stage.pool.spare_rows = 2 * max_batch_size
        one_suffices = True
        # In parallel: OpenVINO compiles a network on one core.
        with ThreadPoolExecutor() as pool:

            def compiled(bucket: int, threads: int) -> list[ov.CompiledModel]:
                return list(pool.map(lambda stage: self.compile(stage.network, bucket, threads), self._stages))

            for bucket in self._buckets:
                with_all, with_one = compiled(bucket, self._threads), None
                one_suffices &= with_all[0].get_property("INFERENCE_NUM_THREADS") > 1
                if one_suffices:
                    with_one = compiled(bucket, 1)
                    one_s, all_s = (self._measure(bucket, networks) for networks in (with_one, with_all))
                    one_suffices = one_s <= WORTH_MORE_THREADS * all_s
                self.threads_of[bucket] = 1 if one_suffices else self._threads
                self._use(bucket, with_one if one_suffices and with_one else with_all)
                self._run_all(bucket)

    def _use(self, bucket: int, networks: Sequence[ov.CompiledModel]) -> None:
        for stage, network in zip(self._stages, networks, strict=True):
            stage.requests[bucket] = network.create_infer_request()

    def _measure(self, bucket: int, networks: Sequence[ov.CompiledModel]) -> float:
        """Seconds of a batch through all of these stages."""
        self._use(bucket, networks)
        return self._seconds(lambda: self._run_all(bucket))

    def _run_all(self, bucket: int) -> None:
        for _ in run_all_stages(self, black_pictures(self._size, bucket)):
            pass


def fastest_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    times: list[float] = []
    while not times or (len(times) < MOST_MEASURED and sum(times) < MEASURED_S):
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return min(times)


def native_precision(core: ov.Core) -> str:
    """bfloat16 if the processor has instructions for it, else float32."""
    return "bfloat16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "float32"


class _Stage:
    """One stage at some batch sizes. It owns the memory of its requests' inputs and outputs: OpenVINO does not."""

    def __init__(
        self, network: ov.Model, compile: Callable[[ov.Model, int], ov.CompiledModel], feature_type: ov.Type
    ) -> None:
        self.network, self._compile, self._type = network, compile, feature_type
        # By bucket.
        self.requests: dict[int, ov.InferRequest] = {}
        self._is_first, self._is_last = is_first(network), is_last(network)
        self._accumulates = len(network.inputs) == 2
        self.pool: BlockPool | None = None
        if not self._is_last:
            _, (classes,), features_shape = row_shapes(network)
            self.pool = BlockPool(features_shape, WORDS[feature_type], classes, SPARE_ROWS)
        # Memory for batches whose rows are not neighbours.
        self._pictures: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._merged: Block | None = None

    def run(self, states: Sequence[Any], bucket: int) -> StepOutput:
        size, request = len(states), self._request(bucket)
        # The rows after the last sample are padding.
        if self._is_first:
            request.set_input_tensor(0, ov.Tensor(self._stack(states, bucket), shared_memory=True))
        else:
            features, accumulated = self._gather(states, bucket)
            request.set_input_tensor(0, features)
            if self._accumulates:
                request.set_input_tensor(1, accumulated)
        if self.pool is None:
            request.infer()
            return StepOutput(request.get_output_tensor(0).data[:size].copy(), lambda rows: [])
        pool, block = self.pool, self.pool.block(bucket)
        features, accumulated = self._tensors(block.memory, bucket)
        request.set_output_tensor(1, accumulated)
        request.set_output_tensor(2, features)
        request.infer()

        def keep(rows: Sequence[int]) -> list[StageState]:
            if not rows or 2 * len(rows) >= bucket:
                return [StageState(block, row) for row in rows]
            # Fewer than half: a copy frees more memory than it takes.
            few = pool.block(len(rows))
            few.fill([(block, row) for row in rows])
            return [StageState(few, row) for row in range(len(rows))]

        return StepOutput(request.get_output_tensor(0).data[:size].copy(), keep)

    def _request(self, bucket: int) -> ov.InferRequest:
        if bucket not in self.requests:
            self.requests[bucket] = self._compile(self.network, bucket).create_infer_request()
        return self.requests[bucket]

    def _stack(self, pictures: Sequence[npt.NDArray[np.uint8]], bucket: int) -> npt.NDArray[np.uint8]:
        """Pictures (B, H, W, 3)."""
        if len(self._pictures) < bucket:
            self._pictures = np.zeros((bucket, *pictures[0].shape), np.uint8)
        np.stack(pictures, out=self._pictures[: len(pictures)])
        return self._pictures[:bucket]

    def _gather(self, states: Sequence[StageState], bucket: int) -> tuple[ov.Tensor, ov.Tensor]:
        """Features (B, H, W, C) and accumulated logits (B, classes). Neighbouring rows of one block are not copied."""
        block, start = states[0]
        together = all(state == (block, start + at) for at, state in enumerate(states))
        if not together or start + bucket > len(block):
            if self._merged is None or len(self._merged) < bucket:
                self._merged = Block(block.memory.like(bucket))
            self._merged.fill(states)
            block, start = self._merged, 0
        # The samples keep their block until the step is over.
        return self._tensors(block.memory, bucket, start)

    def _tensors(self, memory: Memory, rows: int, start: int = 0) -> tuple[ov.Tensor, ov.Tensor]:
        """Tensors over rows of features and of accumulated logits."""
        # Only tensors from the first row on are kept, which are nearly all, and no more than there are batch sizes.
        tensors: tuple[ov.Tensor, ov.Tensor] | None = None if start else memory.views.get(rows)
        if tensors is None:
            features_BHWC, accumulated_BC = (array[start : start + rows] for array in memory[:2])
            features = ov.Tensor(features_BHWC, features_BHWC.shape, self._type)
            tensors = features, ov.Tensor(accumulated_BC, shared_memory=True)
            if not start:
                memory.views[rows] = tensors
        return tensors
