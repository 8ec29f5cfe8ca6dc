"""Work on static buffers, recorded once and repeated: as CUDA graphs, or by simply doing it again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

Work = Callable[[], None]

# torch's own number: libraries choose algorithms and set up workspaces in the first calls.
WARM_UPS = 3

# torch allows one capture at a time in a process.
_capturing = threading.Lock()


class Capture(Protocol):
    """Records work that reads and writes the same memory every time."""

    def reset(self) -> None:
        """Before the first capture, and when nothing that was captured is repeated any more."""
        ...

    def capture(self, work: Work) -> Work:
        """What repeats `work` on the device, perhaps still at it when it returns. Runs `work` a few times."""
        ...

    def wait(self) -> None:
        """Return when all that was repeated is done and its copies to the host have arrived."""
        ...


class CudaGraphs:
    """One CUDA graph for each captured work, all on one stream of their own and in one memory pool.

    One pool can serve them all, since they run one after another and keep their results in static buffers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._done = torch.cuda.Event()
        self.reset()

    def reset(self) -> None:
        """A new pool: torch goes on recording into that of a capture that failed."""
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Work) -> Work:
        """Raises RuntimeError where the work cannot be captured: it waits for the device, or copies pageable memory."""
        graph = torch.cuda.CUDAGraph()
        with _capturing, torch.cuda.device(self._device):
            # The static buffers were filled on another stream.
            torch.cuda.synchronize()
            # Thread-local: what other threads do meanwhile, such as steps of another model, is none of its business.
            capturing = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
            record(work, torch.cuda.stream(self._stream), capturing)

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()
                self._done.record()

        return replay

    def wait(self) -> None:
        """The host waits for the last replay, letting other threads run."""
        self._done.synchronize()


def record(work: Work, on_stream: AbstractContextManager[Any], capturing: AbstractContextManager[Any]) -> None:
    """Warm `work` up and capture it, on a stream that is the thread's current one no longer than that.

    Around the capture as well: where it fails, torch's `graph` does not set the stream back.
    """
    with on_stream:
        for _ in range(WARM_UPS):
            work()
        with capturing:
            work()


class Eager:
    """The stand-in for CUDA graphs on a CPU: the same work on the same buffers, done anew each time."""

    def reset(self) -> None:
        """Nothing is kept."""

    def capture(self, work: Work) -> Work:
        """The work itself."""
        work()
        return work

    def wait(self) -> None:
        """Nothing to wait for: the CPU's work is done when it returns."""
