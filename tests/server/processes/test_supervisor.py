"""When the supervisor starts a process again."""

from __future__ import annotations

from server.processes.supervisor import RESTART_DELAYS_S, SOUND_AFTER_S, RestartDelays


def test_who_goes_on_dying_is_started_again_at_ever_longer_intervals():
    delays = RestartDelays((0.0, 1.0, 5.0))
    assert [delays.after(lived_s=0.1) for _ in range(5)] == [0.0, 1.0, 5.0, 5.0, 5.0]


def test_who_has_lived_long_has_not_died_of_what_the_last_one_died_of():
    delays = RestartDelays((0.0, 1.0, 5.0))
    for lived_s in (0.1, 0.1, SOUND_AFTER_S):
        delays.after(lived_s)
    assert [delays.after(SOUND_AFTER_S + 1.0), delays.after(0.1)] == [0.0, 1.0]


def test_the_first_new_start_waits_for_nothing_and_no_later_one_less_than_the_one_before():
    delays = RestartDelays()
    waits = [delays.after(0.1) for _ in range(2 * len(RESTART_DELAYS_S))]
    assert waits[0] == 0.0
    assert waits == sorted(waits)
