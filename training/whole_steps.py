"""Steps that Ctrl-C does not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class WholeSteps:
    """Delays Ctrl-C until a step is over; a second one cuts the step.

    enabled: else Ctrl-C cuts every step at once. cut: whether a step was begun and not finished.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.cut = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step. Raises KeyboardInterrupt at its end when Ctrl-C came meanwhile."""
        asked = False

        def delay(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            if asked:
                raise KeyboardInterrupt
            asked = True

        # Signals can be handled in the main thread alone, and who ignores Ctrl-C goes on doing so.
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
        if asked:
            raise KeyboardInterrupt
