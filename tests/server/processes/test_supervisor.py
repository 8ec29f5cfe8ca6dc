"""How the supervisor starts a process, and when it starts it again."""

from __future__ import annotations

import os
from pathlib import Path

from offramp.server.processes.supervisor import RESTART_DELAYS_S, Child, RestartDelays
from offramp.server.processes.supervisor_channel import Assignment
from offramp.server.settings import Settings


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


async def test_a_process_that_dies_before_it_has_read_its_assignment_has_just_ended():
    fd = os.memfd_create("test")
    # A module that reads nothing and ends at once.
    assignment = Assignment(Settings(), "engine", "keyword", 0, Path(), "", fd, (), fd, fd)
    child = await Child.start(assignment)
    assert [report async for report in child.reports()] == []
    assert child.describe_end() == "exit status 0"
    os.close(fd)
