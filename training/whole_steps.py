"""Steps that Ctrl-C does not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class WholeSteps:
    """Delays Ctrl-C to the end of a step. A second Ctrl-C cuts the step.

    enabled: if off, Ctrl-C cuts a step at once. cut: whether a step has begun and not ended.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.cut = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step. Raises KeyboardInterrupt at its end after a Ctrl-C."""
        interrupted = False

        def delay(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True

        # Only the main thread can handle signals. A process that ignores Ctrl-C still ignores it.
        main = threading.current_thread() is threading.main_thread()
        delays = self.enabled and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if delays:
            signal.signal(signal.SIGINT, delay)
        try:
            self.cut = True
            yield
            self.cut = False
        finally:
            if delays:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt
