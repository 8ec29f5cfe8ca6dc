"""The engine keeps promises: audits after the answer, falling back, brownout, and deadlines by measured costs."""

from __future__ import annotations

import asyncio
from typing import Any

from offramp.models.exit_policy import ExitReason, ExitRule
from offramp.server.engine.errors import DeadlineExceeded
from offramp.server.engine.profile import CostProfile
from offramp.server.engine.promises.brownout import Brownout, BrownoutLimits
from offramp.server.engine.promises.promises import Audit, AuditOptions, Promises
from offramp.server.engine.request import Contract, ExitPlan, Promise
from tests.server.engine.scripted import NUM_STAGES, Recorder, ScriptedRunner, contract, picture, started

SURE = (0.95, 0.96, 0.97, 0.98)
FULL_DEPTH = ExitPlan(ExitRule.uniform(1.0, NUM_STAGES), Promise(0.0, True))
STRICT = ExitPlan(ExitRule.uniform(0.97, NUM_STAGES), Promise(0.01, True))
BLANK = picture(0)
LOOSE = ExitPlan(ExitRule.uniform(0.5, NUM_STAGES), Promise(0.1, True))


def auditing(**options: Any) -> Promises:
    """Of every sample."""
    return Promises(NUM_STAGES, AuditOptions(share=1.0, **options), draw=lambda: 0.0)


def lowered() -> Brownout:
    """At its first and last level."""
    brownout = Brownout(BrownoutLimits(high_s=1.0, low_s=0.0, lower_every_s=0.0), levels=1)
    brownout.update(0.0, 9.0)
    return brownout


# ---- audit --------------------------------------------------------------------------------------


async def test_an_audited_sample_goes_on_to_full_depth_after_its_client_was_answered():
    runner, observer = ScriptedRunner({1: SURE, 2: SURE}, gated=True, full_depth={2: 7}), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        futures = engine.submit([picture(1), picture(2)], contract(0.9))
        runner.let(1)
        answers = await asyncio.gather(*futures)
        assert [(answer.exit, answer.class_id) for answer in answers] == [(1, 1), (1, 2)]
        assert engine.inflight_samples == 0
        runner.let_all()
        await observer.until_audited(2)
    assert runner.steps == [(stage, [1, 2]) for stage in (1, 1, 2, 3, 4)]
    assert [(report.exit, report.disagreed) for report in observer.audits] == [(1, False), (1, True)]
    assert observer.audits[-1].low < 0.5 < observer.audits[-1].high
    assert len(observer.samples) == 2


async def test_a_sample_that_runs_to_full_depth_agrees_at_no_cost():
    runner, observer = ScriptedRunner(), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        await asyncio.gather(*engine.submit([picture(1)], contract(1.0)))
    assert len(runner.steps) == NUM_STAGES
    assert [(report.exit, report.disagreed) for report in observer.audits] == [(NUM_STAGES, False)]


async def test_what_a_bound_on_depth_cut_short_is_not_audited():
    runner, observer = ScriptedRunner(), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        await asyncio.gather(*engine.submit([picture(1)], contract(0.9, max_exit=2)))
    assert [stage for stage, _ in runner.steps] == [1, 2]
    assert observer.audits == []


async def test_audits_wait_while_anybody_else_does():
    runner, observer = ScriptedRunner({1: SURE}, gated=True), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        [quick] = engine.submit([picture(1)], contract(0.9))
        await runner.entered()
        [slow] = engine.submit([picture(2)], contract(0.99))
        runner.let_all()
        await asyncio.gather(quick, slow)
        await observer.until_audited(2)
    assert runner.steps == [
        *[(1, [1]), (1, [2]), (2, [2]), (3, [2]), (4, [2])],
        *[(stage, [1]) for stage in (1, 2, 3, 4)],
    ]


async def test_a_full_batch_of_audits_goes_at_once():
    runner, observer = ScriptedRunner({1: SURE, 2: SURE}, gated=True), Recorder()
    async with started(runner, observer, promises=auditing(), max_batch_size=2) as engine:
        early = engine.submit([picture(1), picture(2)], contract(0.9))
        await runner.entered()
        late = engine.submit([picture(3), picture(4), picture(5)], contract(0.99))
        runner.let(1)
        await asyncio.gather(*early)
        await runner.entered()
        runner.let_all()
        await asyncio.gather(*late)
        await observer.until_audited(5)
    # A step that was under way comes first, and nothing else.
    first = runner.steps.index((1, [1, 2]), 1)
    assert first <= 2
    assert runner.steps[first : first + 4] == [(stage, [1, 2]) for stage in (1, 2, 3, 4)]


async def test_a_fault_in_an_audit_harms_no_answer():
    def fail_behind_the_first_stage(stage: int, names: list[int]) -> None:
        if stage > 1 and 1 in names:
            raise RuntimeError("broken")

    runner, observer = ScriptedRunner({1: SURE}, faults=fail_behind_the_first_stage), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        [answer] = await asyncio.gather(*engine.submit([picture(1)], contract(0.9)))
        assert answer.exit == 1
        [other] = await asyncio.gather(*engine.submit([picture(2)], contract(0.99)))
        assert other.exit == NUM_STAGES
        await observer.until_audited(2)
    # What could not be compared has nothing against it.
    assert [(report.exit, report.disagreed) for report in observer.audits] == [(NUM_STAGES, False)] * 2


# ---- falling back -------------------------------------------------------------------------------


async def broken(on_alarm: str, contracts: list[Contract]) -> list[int]:
    """The exits of the contracts once LOOSE is found broken: its answers always differ from full depth."""
    names = range(1, 40)
    runner, observer = (
        ScriptedRunner(dict.fromkeys((*names, 99), SURE), full_depth={n: n + 1 for n in names}),
        Recorder(),
    )
    promises = auditing(on_alarm=on_alarm, false_alarm_every=100.0)
    async with started(runner, observer, promises=promises) as engine:
        loose = Contract(LOOSE, (STRICT, FULL_DEPTH))
        await asyncio.gather(*engine.submit([picture(n) for n in names], loose))
        await observer.until_audited(len(names))
        assert observer.audits[-1].rings
        assert observer.audits[-1].promise == 0.1
        return [(await engine.submit([picture(99)], each)[0]).exit for each in contracts]


async def test_the_log_says_once_that_a_promise_is_broken(server_log):
    await broken("report", [Contract(ExitPlan(LOOSE.rule))])
    [message] = [record.getMessage() for record in server_log.records if "found broken" in record.getMessage()]
    assert "at most 10.00% of the answers differ" in message
    assert "on alarm: report" in message


async def test_a_broken_promise_is_reported_and_kept_where_nothing_else_was_ordered():
    assert await broken("report", [Contract(LOOSE, (STRICT, FULL_DEPTH))]) == [1]


async def test_a_broken_promise_falls_back_to_the_next_that_holds():
    contracts = [
        Contract(LOOSE, (STRICT, FULL_DEPTH)),
        Contract(STRICT, (FULL_DEPTH,)),
        Contract(ExitPlan(LOOSE.rule)),
    ]
    assert await broken("tighten", contracts) == [3, 3, 1]


async def test_a_broken_promise_falls_back_to_full_depth_where_that_was_ordered():
    contracts = [
        Contract(LOOSE, (STRICT, FULL_DEPTH)),
        Contract(STRICT, (FULL_DEPTH,)),
    ]
    assert await broken("full-depth", contracts) == [4, 3]


def compare(promises: Promises, promise: Promise, count: int) -> None:
    """So many samples under a promise disagreed with full depth."""
    for ticket in range(count):
        promises.compare(Audit(ticket, BLANK, promise, exit=1, class_id=1), 2)


def test_what_is_too_loose_under_load_is_broken_alone():
    contract = Contract(STRICT, (FULL_DEPTH,), (LOOSE,))
    promises = Promises(NUM_STAGES, AuditOptions(on_alarm="full-depth", false_alarm_every=100.0), lowered())
    assert promises.choose(contract) is LOOSE
    compare(promises, Promise(0.1, certified=True), 30)
    assert promises.choose(contract) is STRICT
    compare(promises, Promise(0.01, certified=True), 30)
    assert promises.choose(contract) is FULL_DEPTH
    unpromised = ExitPlan(LOOSE.rule)
    assert promises.choose(Contract(unpromised)) is unpromised


async def test_a_sample_that_is_cut_off_counts_as_agreeing():
    # Left out, those who leave early would be too many among the audited.
    runner, observer = ScriptedRunner({1: SURE}, gated=True, step_s=1.0), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        late = engine.submit([picture(2)], contract(1.0), deadline_s=runner.clock() + 1.5)
        gone = engine.submit([picture(3)], contract(1.0))
        await runner.entered()
        gone[0].cancel()
        runner.let_all()
        await asyncio.gather(*late)
        await observer.until_audited(2)
    assert [(report.exit, report.disagreed) for report in observer.audits] == [(NUM_STAGES, False)] * 2


async def test_a_picture_for_which_full_depth_names_no_class_is_no_disagreement():
    nan = float("nan")
    runner, observer = ScriptedRunner({1: (0.95, 0.9, 0.9, nan), 2: SURE}), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        await asyncio.gather(*engine.submit([picture(1), picture(2)], contract(0.9)))
        await observer.until_audited(2)
    assert [(report.exit, report.disagreed) for report in observer.audits] == [(NUM_STAGES, False), (1, False)]


async def test_one_bad_picture_does_not_spoil_the_audit_of_its_batch():
    def fail(stage: int, names: list[int]) -> None:
        if stage > 1 and 2 in names:
            raise RuntimeError("broken")

    runner, observer = ScriptedRunner(dict.fromkeys((1, 2, 3), SURE), faults=fail), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        await asyncio.gather(*engine.submit([picture(1), picture(2), picture(3)], contract(0.9)))
        await observer.until_audited(3)
    assert [report.exit for report in observer.audits] == [1, NUM_STAGES, 1]


async def test_comparisons_are_learnt_in_the_order_in_which_samples_came():
    # The first leaves early and is compared last.
    runner, observer = ScriptedRunner({1: SURE}, full_depth={1: 5}, gated=True), Recorder()
    async with started(runner, observer, promises=auditing()) as engine:
        futures = engine.submit([picture(1)], contract(0.9))
        await runner.entered()
        futures += engine.submit([picture(2), picture(3)], contract(0.99))
        runner.let_all()
        await asyncio.gather(*futures)
        await observer.until_audited(3)
    assert runner.steps[-1] == (4, [1])
    assert [report.disagreed for report in observer.audits] == [True, False, False]


async def test_only_the_share_that_is_asked_for_is_audited():
    draws = iter([0.05, 0.5, 0.09, 0.1])
    runner, observer = ScriptedRunner(), Recorder()
    promises = Promises(NUM_STAGES, AuditOptions(share=0.1), draw=lambda: next(draws))
    async with started(runner, observer, promises=promises) as engine:
        await asyncio.gather(*engine.submit([picture(n) for n in range(4)], contract(1.0)))
        await observer.until_audited(2)
    assert len(observer.audits) == 2


# ---- brownout -----------------------------------------------------------------------------------


async def test_under_load_thresholds_are_lowered_as_far_as_the_contract_allows():
    runner, observer = ScriptedRunner(dict.fromkeys(range(50), (0.6, 0.6, 0.6, 0.99)), step_s=1.0), Recorder()
    brownout = Brownout(BrownoutLimits(high_s=2.0, low_s=0.5, lower_every_s=0.0, raise_every_s=0.0), levels=1)
    allows, insists = Contract(ExitPlan(STRICT.rule), looser=(LOOSE,)), Contract(ExitPlan(STRICT.rule))
    async with started(runner, observer, promises=Promises(NUM_STAGES, brownout=brownout), max_wait_s=1e9) as engine:
        [calm] = await asyncio.gather(*engine.submit([picture(0)], allows))
        assert (calm.exit, calm.reason) == (4, ExitReason.FINAL)
        runner.gated = True
        blocker = engine.submit([picture(1)], insists)
        await runner.entered()
        crowd = engine.submit([picture(n) for n in range(2, 6)], insists)
        lowered, unchanged = engine.submit([picture(6)], allows)[0], engine.submit([picture(7)], insists)[0]
        runner.let_all()
        await asyncio.gather(*blocker, *crowd)
        assert [(each.exit, each.reason) for each in (await lowered, await unchanged)] == [
            (1, ExitReason.BROWNOUT),
            (4, ExitReason.FINAL),
        ]
        [recovered] = await asyncio.gather(*engine.submit([picture(8)], allows))
        assert recovered.exit == 4
    assert observer.levels == [1, 0]


async def test_a_sample_that_leaves_without_the_brownout_does_not_name_it():
    runner, observer = ScriptedRunner({1: (0.99, 0.99, 0.99, 0.99)}), Recorder()
    async with started(runner, observer, promises=Promises(NUM_STAGES, brownout=lowered())) as engine:
        [answer] = await asyncio.gather(*engine.submit([picture(1)], Contract(ExitPlan(STRICT.rule), looser=(LOOSE,))))
    assert (answer.exit, answer.reason) == (1, ExitReason.CONFIDENT)


# ---- deadlines ----------------------------------------------------------------------------------


async def timed(deadline_s: float) -> tuple[list[int], object]:
    """The stages run for one sample whose deadline is so many seconds away, where each stage takes one; its outcome."""
    runner, observer = ScriptedRunner(step_s=1.0), Recorder()
    async with started(runner, observer, warm_up=lambda: CostProfile(32, (1,), ((1.0,),) * NUM_STAGES)) as engine:
        [future] = engine.submit([picture(1)], contract(1.0), deadline_s=runner.clock() + deadline_s)
        [outcome] = await asyncio.gather(future, return_exceptions=True)
    return [stage for stage, _ in runner.steps], outcome


async def test_no_stage_is_begun_that_cannot_end_in_time():
    stages, answer = await timed(2.5)
    assert stages == [1, 2]
    assert (answer.exit, answer.reason) == (2, ExitReason.DEADLINE)  # type: ignore[attr-defined]


async def test_a_batch_is_cut_where_it_would_be_too_late_for_one_of_it():
    profile = CostProfile(4, (1, 4), ((1.0, 4.0),) * NUM_STAGES)
    runner, observer = ScriptedRunner(dict.fromkeys(range(4), SURE), gated=True), Recorder()
    async with started(runner, observer, warm_up=lambda: profile, max_batch_size=4) as engine:
        now_s = runner.clock()
        # Together they take 4 s; two of them 2 s.
        futures = engine.submit([picture(n) for n in range(4)], contract(0.9), deadline_s=now_s + 2.5)
        assert await runner.entered() == (1, [0, 1])
        runner.let_all()
        await asyncio.gather(*futures)


async def test_where_not_even_the_first_stage_would_end_in_time_nothing_is_run():
    stages, outcome = await timed(0.5)
    assert stages == []
    assert isinstance(outcome, DeadlineExceeded)
