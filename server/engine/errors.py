"""The engine's error tree.

EngineError
├── Overloaded          the queue is full, or its predicted wait is too long: come back after `retry_after_s`
├── EngineStopped       the engine is draining or has died, and takes no more samples
├── WarmUpFailed        the engine's warm-up failed
├── DeviceLost          the device fails every call, or a step hangs; the process must end
├── CaptureFailed       CUDA cannot record a step; in `runners.cuda.cuda_graphs`
├── OutOfSlots          more samples in flight than a GPU has room for; in `runners.cuda.slots`
├── DeadlineExceeded    the deadline passed before exit 1 was computed
└── InferenceFailed     this sample's step failed, even alone
"""

from __future__ import annotations

RESTARTING = "the engine is starting again"


class EngineError(Exception):
    """Base of all errors that an engine raises or delivers."""


class Overloaded(EngineError):
    """The engine has no room for the pictures now. retry_after_s: predicted seconds until the queue is empty."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class EngineStopped(EngineError):
    """The engine takes no more samples.

    draining: it ends in good order; otherwise it has died. restarts: another process starts it again.
    """

    def __init__(self, *, draining: bool, restarts: bool = False) -> None:
        died = RESTARTING if restarts else "the engine is not running"
        super().__init__("the engine is shutting down" if draining else died)
        self.draining = draining


class WarmUpFailed(EngineError):
    """The engine could not warm up, and has ended."""


class DeviceLost(EngineError):
    """Every call of this process on the device fails from now on: the process must end."""


class DeadlineExceeded(EngineError):
    """The deadline passed before the first exit was computed."""


class InferenceFailed(EngineError):
    """The sample's step failed, even alone."""
