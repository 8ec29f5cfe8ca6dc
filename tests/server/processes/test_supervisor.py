"""When the supervisor starts a process again."""

from __future__ import annotations

from offramp.server.processes.supervisor import RESTART_DELAYS_S, RestartDelays


def test_a_process_that_dies_before_it_is_ready_is_started_again_at_ever_longer_intervals():
    delays = RestartDelays((0.0, 1.0, 5.0))
    assert [delays.after(ready=False) for _ in range(5)] == [0.0, 1.0, 5.0, 5.0, 5.0]


def test_a_process_that_was_ready_is_started_again_at_once_however_often_it_dies():
    delays = RestartDelays((0.0, 1.0, 5.0))
    assert [delays.after(ready) for ready in (True, True, True, False, False, True, False)] == [0, 0, 0, 0, 1, 0, 0]


def test_the_first_new_start_waits_for_nothing_and_no_later_one_less_than_the_one_before():
    delays = RestartDelays()
    waits = [delays.after(ready=False) for _ in range(2 * len(RESTART_DELAYS_S))]
    assert waits[0] == 0.0
    assert waits == sorted(waits)
