"""Watches the steps of the engine's thread: whether a step hangs, and whether all steps fail."""

from __future__ import annotations

from offramp.server.engine.errors import DeviceLost

ENGINE_THREAD = "offramp-engine"

# A longer step hangs. Generous, for large networks on slow processors.
HUNG_AFTER_S = 60.0
# Nor is a step shorter than this many times the slowest measured one a hang.
HUNG_AFTER_STEPS = 20.0
# Looks at one step until it hangs. Looks are counted, not seconds: the clock goes on while a process is stopped, or a
# machine is suspended.
LOOKS = 60

# Steps in a row in which every sample failed, alone as well. No bad picture causes that.
MOST_FAILED_STEPS = 3
LOG_PERIOD_S = 1.0


class StepWatch:
    """Counts running steps, and failed steps in a row.

    hung_after_s: shortest duration of a step that hangs. The engine's thread calls begin, succeed, end and may_log; the
    event loop's thread calls allow and, every `look_s`, look.
    """

    def __init__(self, hung_after_s: float = HUNG_AFTER_S) -> None:
        self.hung_after_s = hung_after_s
        self.hangs = False
        self._begun = 0
        self._ended = 0
        self._failed = 0
        self._logged_s = float("-inf")
        self._seen = 0
        self._looks = 0

    @property
    def look_s(self) -> float:
        """Seconds from one look to the next."""
        return self.hung_after_s / LOOKS

    def begin(self) -> None:
        """A step begins. It counts as failed until `succeed` is called."""
        self._begun += 1
        self._failed += 1

    def succeed(self) -> None:
        """The runner has answered for at least one sample."""
        self._failed = 0

    def end(self) -> None:
        """The step has ended. Raises DeviceLost if it is the third in a row that failed for every sample."""
        self._ended += 1
        if self._failed >= MOST_FAILED_STEPS:
            raise DeviceLost(f"{MOST_FAILED_STEPS} steps in a row failed for every sample, each alone as well")

    def may_log(self, now_s: float) -> bool:
        """Whether to log a failure: at most one a second."""
        if now_s - self._logged_s < LOG_PERIOD_S:
            return False
        self._logged_s = now_s
        return True

    def allow(self, slowest_step_s: float) -> None:
        """Raise `hung_after_s` for slow steps."""
        self.hung_after_s = max(self.hung_after_s, HUNG_AFTER_STEPS * slowest_step_s)

    def look(self) -> bool:
        """Whether the same step has run for `hung_after_s`. Then `hangs` is set."""
        begun, ended = self._begun, self._ended
        if begun == ended or begun != self._seen:
            self._seen, self._looks = begun, 0
            return False
        self._looks += 1
        self.hangs = self._looks >= LOOKS
        return self.hangs
