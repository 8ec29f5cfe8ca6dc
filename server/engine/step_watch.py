"""What the engine's thread is at: whether its step ends, and whether steps still come to something."""

from __future__ import annotations

from offramp.server.engine.errors import DeviceLost

ENGINE_THREAD = "offramp-engine"

# A step that takes so long is no step any more. Generous: a large network on a slow processor is work, not a hang.
HUNG_AFTER_S = 60.0
# And so many times what its slowest step was measured to take.
HUNG_AFTER_STEPS = 20.0
# Looks at one step before it is said to hang. Looks are counted, not seconds: a process that was stopped and goes on,
# or a machine that was suspended, has lost time in no step.
LOOKS = 60

# Steps in a row in which every sample failed alone, too: no bad picture does that.
MOST_FAILED_STEPS = 3
LOG_PERIOD_S = 1.0


class StepWatch:
    """Counts steps: those under way, and those in a row that failed.

    hung_after_s: how long a step may take at least. The engine's thread calls begin, succeeded, end and may_log;
    the event loop's allow and look, `look_s` apart.
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
        """A step begins; it has failed unless `succeeded` is called before its end."""
        self._begun += 1
        self._failed += 1

    def succeeded(self) -> None:
        """The runner has answered for one sample at least."""
        self._failed = 0

    def end(self) -> None:
        """The step has ended. Raises DeviceLost where it is the third in a row that failed for every sample."""
        self._ended += 1
        if self._failed >= MOST_FAILED_STEPS:
            raise DeviceLost(f"{MOST_FAILED_STEPS} steps in a row failed for every sample, each alone as well")

    def may_log(self, now_s: float) -> bool:
        """Whether a failure is worth a line in the log: at most one a second is."""
        if now_s - self._logged_s < LOG_PERIOD_S:
            return False
        self._logged_s = now_s
        return True

    def allow(self, slowest_step_s: float) -> None:
        """Wait longer where steps are measured to take long."""
        self.hung_after_s = max(self.hung_after_s, HUNG_AFTER_STEPS * slowest_step_s)

    def look(self) -> bool:
        """Whether the step under way has been the same for `hung_after_s`; true once, `hangs` from then on."""
        begun, ended = self._begun, self._ended
        if begun == ended or begun != self._seen:
            self._seen, self._looks = begun, 0
            return False
        self._looks += 1
        self.hangs = self._looks >= LOOKS
        return self.hangs
