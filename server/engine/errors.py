"""The engine's error tree.

EngineError
├── Overloaded          the queue is full, or its predicted wait is too long: come back after `retry_after_s`
├── EngineStopped       the engine is draining or has died, takes nothing more
├── WarmUpFailed        the engine's start came to nothing
├── DeviceLost          the device answers no more, or does not end a step; the process has to end
├── CaptureFailed       CUDA refused to record a step; in `runners.cuda.cuda_graphs`
├── OutOfSlots          more samples in flight than a GPU has room for; in `runners.cuda.slots`
├── DeadlineExceeded    the deadline passed before exit 1 was computed
└── InferenceFailed     this sample's step failed, even alone
"""

from __future__ import annotations

RESTARTING = "the engine is starting again"


class EngineError(Exception):
    """Base of all that an engine can raise or deliver."""


class Overloaded(EngineError):
    """Refused at once, so that nobody waits for a refusal. retry_after_s: until the queue is worked off."""

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
    """The device computes nothing any more. No other call of this process will succeed: it has to end."""


class DeadlineExceeded(EngineError):
    """The deadline passed before the first exit was computed."""


class InferenceFailed(EngineError):
    """The sample's step failed, even alone."""
