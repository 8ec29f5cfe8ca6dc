"""The simulator: runs that can be worked out by hand, what must hold for all, and agreement with records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.errors import BenchmarkError
from benchmarks.simulate import SimulateOptions, capacity, measure, read_profile, run
from benchmarks.simulate_agreement import Observed, agreement, compare, fitted, over_http, predict
from benchmarks.simulate_engine import Asked, engine_agreement, measure_loops
from benchmarks.simulate_fleet import Fleet, Outcome, Simulation
from benchmarks.simulate_load import ARRIVALS, Mix, mix_of_exits, read_mixes
from benchmarks.simulate_tables import simulation_section, simulation_verdict
from server.engine.policies import POLICIES, RunToCompletion
from server.engine.profile import CostProfile
from server.engine.runners.runner import StepOutput

# Binary fractions, so that sums are exact. Stage 1: 1 s and 0.25 s a sample more; stage 2: twice that.
PROFILE = CostProfile(4, (1, 2, 4), ((1.0, 1.25, 1.75), (2.0, 2.5, 3.5)))
FLEET = Fleet(PROFILE, lambda profile: RunToCompletion(), 4, max_wait_s=float("inf"))
HALF = Mix("half", (0.5, 0.5))


def simulation(fleet: Fleet, exits: list[int], seed: int = 0) -> Simulation:
    return Simulation(fleet, np.array(exits), np.random.default_rng(seed))


def test_latency_is_what_a_request_waits_and_the_steps_it_goes_through():
    outcome = simulation(FLEET, [2, 1, 2]).open_loop(np.array([0.0, 0.5, 2.0]))
    # 0..1: the first alone; 1..3: its stage 2, while two come in; 3..4.25: both; 4.25..6.25: the one that goes on.
    assert outcome.latency_s.tolist() == [3.0, 3.75, 4.25]
    assert outcome.arrived_s.tolist() == [0.0, 0.5, 2.0]
    assert outcome.mean_batch == 5 / 4


def test_the_event_loop_takes_requests_in_and_gives_answers_out_one_after_another():
    apart = replace(FLEET, request_s=0.5)
    outcome = simulation(apart, [1, 1]).open_loop(np.array([0.0, 0.0]))
    # Taken in at 0.25 and 0.5; steps 0.25..1.25 and 1.25..2.25; each answer takes 0.25.
    assert outcome.latency_s.tolist() == [1.5, 2.5]
    both = simulation(replace(apart, step_s=0.25), [1, 1, 1]).open_loop(np.array([0.0, 0.25, 0.25]))
    # The second step is over two, 1.25 + 0.25 long, to 3.0; their answers queue up.
    assert both.latency_s.tolist() == [1.75, 3.0, 3.25]


def test_step_and_event_loop_slow_each_other_down_where_they_share_cores():
    shared = replace(FLEET, request_s=1.0, sharing=0.5)
    outcome = simulation(shared, [1, 1]).open_loop(np.array([0.0, 0.5]))
    # The first step begins at 0.5 beside the second request's half second, which takes one: at 1.5, half of it is left.
    assert outcome.latency_s[0] == pytest.approx(0.5 + 1.0 + 0.5 + 1.0)


def test_a_step_that_is_begun_beside_a_busy_event_loop_takes_longer():
    contended = replace(FLEET, request_s=0.5, contended_s=2.0)
    outcome = simulation(contended, [1, 1]).open_loop(np.array([0.0, 0.0]))
    # The first begins at 0.25 beside the second's taking in, and ends at 3.25; the second beside that one's answer.
    assert outcome.latency_s.tolist() == [3.5, 6.5]
    alone = simulation(contended, [1]).open_loop(np.array([0.0]))
    assert alone.latency_s.tolist() == [1.5]


def test_every_step_costs_something_beyond_its_profile():
    assert simulation(replace(FLEET, step_s=0.5), [2]).open_loop(np.array([1.0])).latency_s.tolist() == [4.0]


def test_an_engine_refuses_what_it_could_not_hold():
    outcome = simulation(replace(FLEET, max_inflight=2), [1] * 4).open_loop(np.array([0.0, 0.25, 0.5, 1.5]))
    assert np.isnan(outcome.latency_s).tolist() == [False, False, True, False]


def test_an_engine_refuses_what_would_wait_too_long_at_its_pace():
    # One second a sample, so far: two in flight mean two seconds.
    impatient = replace(FLEET, max_wait_s=1.5)
    outcome = simulation(impatient, [1] * 4).open_loop(np.array([0.0, 2.0, 2.25, 2.5]))
    assert np.isnan(outcome.latency_s).tolist() == [False, False, False, True]


def test_clients_of_a_closed_loop_ask_anew_when_they_are_answered():
    outcome = simulation(FLEET, [1] * 5).closed_loop(2)
    # Both at once go into one step, and so again; the last one alone.
    assert outcome.arrived_s.tolist() == [0.0, 0.0, 1.25, 1.25, 2.5]
    assert outcome.latency_s.tolist() == [1.25, 1.25, 1.25, 1.25, 1.0]


def test_the_engine_does_not_wait_for_those_whom_it_has_just_answered():
    outcome = simulation(FLEET, [1, 2, 1, 1]).closed_loop(2)
    # 0..1.25: both; the one goes on, 1.25..3.25, while the other asks anew; that one, 3.25..4.25, meets nobody again.
    assert outcome.arrived_s.tolist() == [0.0, 0.0, 1.25, 3.25]
    assert outcome.latency_s.tolist() == [1.25, 3.25, 3.0, 2.0]


def test_round_robin_goes_round_and_two_choices_take_the_less_busy():
    fleet = replace(FLEET, engines=3)
    at_once = np.zeros(6)
    in_turn = simulation(replace(fleet, dispatch="round-robin"), [1] * 6).open_loop(at_once)
    assert in_turn.latency_s.tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    # Every other request is long: in turn, one of two engines gets them all.
    exits = [2, 1] * 500
    times_s = ARRIVALS["poisson"](0.8 * 2 * capacity(FLEET, HALF), 1000, np.random.default_rng(2))
    waits_s = {
        dispatch: simulation(replace(fleet, engines=2, dispatch=dispatch), exits).open_loop(times_s).latency_s.mean()
        for dispatch in ("two-choices", "round-robin")
    }
    assert waits_s["two-choices"] < waits_s["round-robin"] / 2


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=40)
@given(
    exits=st.lists(st.integers(1, 2), min_size=1, max_size=60),
    gaps_s=st.lists(st.floats(0, 4), min_size=60, max_size=60),
    engines=st.integers(1, 3),
    clients=st.integers(1, 9),
)
def test_everybody_is_answered_and_never_sooner_than_alone(name, exits, gaps_s, engines, clients):
    fleet = replace(FLEET, policy=POLICIES[name], engines=engines)
    alone_s = np.array([1.0, 3.0])[np.array(exits) - 1]
    open_loop = simulation(fleet, exits).open_loop(np.cumsum(gaps_s[: len(exits)]))
    closed_loop = simulation(fleet, exits).closed_loop(clients)
    for outcome in (open_loop, closed_loop):
        assert (outcome.latency_s >= alone_s - 1e-9).all()


@pytest.mark.parametrize("kind", ARRIVALS)
def test_arrivals_rise_come_at_the_rate_asked_for_and_are_the_same_for_the_same_seed(kind):
    times_s = ARRIVALS[kind](50.0, 40_000, np.random.default_rng(3))
    assert len(times_s) == 40_000
    assert (np.diff(times_s) >= 0).all()
    assert 40_000 / times_s[-1] == pytest.approx(50.0, rel=0.1)
    assert (times_s == ARRIVALS[kind](50.0, 40_000, np.random.default_rng(3))).all()


def test_bursts_are_burstier_than_poisson_and_a_day_swings():
    def counts(kind, slots):
        times_s = ARRIVALS[kind](50.0, 40_000, np.random.default_rng(4))
        return np.histogram(times_s, bins=slots)[0]

    def dispersion(kind):
        return counts(kind, 400).var() / counts(kind, 400).mean()

    assert dispersion("poisson") == pytest.approx(1.0, abs=0.4)
    assert dispersion("bursts") > 10.0
    by_half_day = counts("diurnal", 8)
    assert (by_half_day[::2] > 1.5 * by_half_day[1::2]).all()


def test_a_mix_is_drawn_as_it_is_and_counts_who_reaches_a_stage():
    mix = mix_of_exits("taken", [1, 1, 3, 4, 1, 1, 3, 4], 4)
    assert mix.shares == (0.5, 0.0, 0.25, 0.25)
    assert mix.reaching == (1.0, 0.5, 0.5, 0.25)
    drawn = mix.draw(20_000, np.random.default_rng(5))
    assert np.bincount(drawn, minlength=5)[1:] / 20_000 == pytest.approx(mix.shares, abs=0.02)


def test_mixes_are_read_from_bench_results_from_shares_and_from_exits(tmp_path: Path):
    bench, lists = tmp_path / "bench.json", tmp_path / "lists.json"
    bench.write_text(json.dumps({"rows": [{"threshold": 0.5, "exit_mix": [0.75, 0.25]}]}))
    lists.write_text(json.dumps({"shares": [0.25, 0.75], "exits": [1, 2, 2, 1]}))
    assert read_mixes(bench, 2) == (Mix("0.5", (0.75, 0.25)),)
    assert read_mixes(lists, 2) == (Mix("shares", (0.25, 0.75)), Mix("exits", (0.5, 0.5)))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("no JSON", BenchmarkError, "holds no exit mixes"),
        ('{"a": 5}', BenchmarkError, "holds no exit mixes"),
        ('{"rows": [{}]}', BenchmarkError, "holds no exit mixes"),
        ('{"a": [0.5, 0.6]}', ValueError, "adding up to 1"),
        ('{"a": [1, 3]}', ValueError, "each from 1 to 2"),
        ('{"a": []}', ValueError, "give at least one"),
        ('{"a": [0.5, 0.25, 0.25]}', ValueError, "has 3 exits, the profile 2 stages"),
    ],
)
def test_what_is_no_mix_is_refused(tmp_path: Path, content, error, message):
    path = tmp_path / "mix.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        read_mixes(path, 2)


def test_capacity_is_that_of_full_batches():
    assert capacity(FLEET, HALF) == pytest.approx(1 / (1.75 / 4 + 0.5 * 3.5 / 4))


def test_figures_leave_the_warm_up_out_and_count_only_answers_in_time():
    latency_s = np.array([100.0, 100.0, 1.0, 2.0, 3.0, np.nan, 1.0, 1.0, 9.0, 1.0])
    figures = measure(Outcome(np.arange(10.0), latency_s, 2.5), 2.0, 4.0)
    assert figures["goodput"] == pytest.approx(5 / 7)
    assert figures["goodput_share"] == pytest.approx(5 / 28)
    assert figures["throughput"] == pytest.approx(7 / 7)
    assert figures["refused"] == pytest.approx(1 / 8)
    assert figures["p50_ms"] == pytest.approx(1000.0)
    assert measure(Outcome(np.arange(10.0), latency_s, 2.5), None, 4.0)["goodput"] == pytest.approx(7 / 7)
    assert measure(Outcome(np.arange(10.0), np.full(10, np.nan), 0.0), 2.0, 4.0)["p99_ms"] is None


def test_a_profile_without_a_word_on_its_origin_is_hypothetical(tmp_path: Path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(PROFILE.to_dict()))
    assert (read_profile(path).name, read_profile(path).measured) == ("some", False)
    path.write_text(json.dumps({**PROFILE.to_dict(), "name": "two cores", "measured": True}))
    assert (read_profile(path).name, read_profile(path).measured) == ("two cores", True)
    path.write_text("{")
    with pytest.raises(BenchmarkError, match="holds no cost profile"):
        read_profile(path)


CLOSED = Observed(HALF, {"throughput": 0.7}, clients=8)
OPEN = Observed(HALF, {"p50_ms": 4000.0, "p99_ms": 12000.0}, rate=0.4)


def test_a_prediction_is_compared_with_every_figure_that_was_measured():
    by_figure = {(figure.load, figure.figure): figure for figure in compare(FLEET, [CLOSED, OPEN])}
    assert set(by_figure) == {("8 clients", "throughput"), ("0/s", "p50_ms"), ("0/s", "p99_ms")}
    predicted = predict(FLEET, CLOSED)["throughput"]
    assert by_figure["8 clients", "throughput"].error == pytest.approx(predicted / 0.7 - 1)
    assert 3000 <= by_figure["0/s", "p50_ms"].predicted < by_figure["0/s", "p99_ms"].predicted


def test_a_loop_is_predicted_with_the_costs_that_were_its_own():
    twice = CostProfile(4, (1, 2, 4), ((2.0, 2.5, 3.5), (4.0, 5.0, 7.0)))
    slower = predict(FLEET, replace(CLOSED, profile=twice))["throughput"]
    assert slower == pytest.approx(predict(FLEET, CLOSED)["throughput"] / 2)
    dearer = predict(FLEET, replace(CLOSED, request_s=4.0))["throughput"]
    assert dearer == pytest.approx(1 / 4, rel=0.01)


def test_what_is_fitted_comes_out_as_it_was_measured():
    busy = replace(FLEET, request_s=0.4, contended_s=0.00075, sharing=2 / 3)
    measured = [
        Observed(mix, {"throughput": predict(busy, Observed(mix, {}, clients=8))["throughput"]}, clients=8)
        for mix in (Mix("early", (1.0, 0.0)), Mix("late", (0.0, 1.0)))
    ]
    found = fitted(FLEET, measured, [0.2, 0.4, 0.8])
    assert found.request_s == 0.4
    for one in measured:
        assert predict(found, one)["throughput"] == pytest.approx(one.figures["throughput"], rel=0.03)


def test_a_mix_of_another_depth_cannot_be_compared():
    with pytest.raises(ValueError, match="has 3 exits, the profile 2 stages"):
        predict(FLEET, replace(CLOSED, mix=Mix("deep", (0.5, 0.25, 0.25))))


def test_the_errors_of_each_figure_are_summed_up():
    document = agreement(
        FLEET, [CLOSED], [replace(OPEN, figures={"p50_ms": 1.0}), replace(OPEN, figures={"p50_ms": 1e9})]
    )
    far, near = (abs(row["error"]) for row in document["compared"])
    assert document["errors"] == {"p50_ms": {"median": (far + near) / 2, "worst": far}}
    assert document["fitted_to"] == ["half, 8 clients"]


def test_what_is_fitted_is_not_counted_as_agreement(tmp_path: Path):
    path = tmp_path / "thresholds.json"
    rows = [
        {"threshold": threshold, "exit_mix": [1 - deep, deep], "p50_ms": {"median": 4e3}, "p99_ms": {"median": 1e4}}
        for threshold, deep in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0))
    ]
    rounds = {"closed_loop": [{"load_cpu_ms": 1.0}], "open_loop": [{"load_cpu_ms": 3.0}]}
    document = {"open_loop_rate": 0.4, "connections": 8, "rounds": rounds}
    path.write_text(json.dumps({**document, "rows": [{**row, "throughput": {"median": 0.7}} for row in rows]}))
    compared = [(row["mix"], row["load"], row["figure"]) for row in over_http(FLEET, path, samples=250)["compared"]]
    assert [one for one in compared if one[2] == "throughput"] == [("1", "8 clients", "throughput")]
    assert [one[0] for one in compared if one[2] == "p99_ms"] == ["0", "0.5", "1"]
    path.write_text("{}")
    with pytest.raises(BenchmarkError, match="no result of `offramp bench thresholds`"):
        over_http(FLEET, path)


@dataclass(frozen=True)
class Halver:
    """Two stages; pictures with an even first value are sure at exit 1."""

    num_stages: int = 2

    def run(self, stage: int, states: Sequence[Any]) -> StepOutput:
        first_B = np.array([state.flat[0] for state in states])
        sure_B = np.where((first_B % 2 == 0) | (stage == 2), 0.9, 0.6).astype(np.float32)
        return StepOutput(np.stack([sure_B, 1 - sure_B], axis=1), lambda rows: [states[row] for row in rows])

    def warm_up(self, max_samples: int) -> None:
        """Nothing to warm."""


def test_the_engine_itself_goes_through_closed_and_open_loops():
    pictures = [np.full((2, 2, 3), value, np.uint8) for value in range(4)]
    measured = measure_loops(Asked(Halver(), pictures, 2, seconds=0.1), [0.8])
    assert [one.clients for one in measured.loops] == [1, 8, 32, 128, 0, 0, 0]
    for one in measured.loops:
        assert one.mix.shares == pytest.approx((0.5, 0.5), abs=0.2)
        assert ("throughput" in one.figures) == (one.clients > 0)
        assert 0 < one.figures["p50_ms"] <= one.figures["p99_ms"]
        assert one.request_s > 0
    assert measured.profile.num_stages == 2
    assert measured.loops[4].rate < measured.loops[5].rate < measured.loops[6].rate


def test_an_engine_is_predicted_from_one_client_alone_and_one_closed_loop():
    """Figures of a simulated engine stand for measured ones: steps take 0.125 s more than its profile says."""
    slow = replace(FLEET, step_s=0.125, sharing=2 / 3)
    loops = [
        Observed(HALF, {}, clients=1),
        Observed(HALF, {}, clients=8),
        Observed(HALF, {}, clients=32),
        Observed(HALF, {}, rate=0.5),
    ]
    measured = [replace(one, figures=predict(slow, one)) for one in loops]
    document = engine_agreement(FLEET, measured)
    assert document["step_ms"] == pytest.approx(125.0, rel=0.1)
    assert document["fitted_to"] == ["half, 1 clients", "half, 32 clients"]
    assert {row["load"] for row in document["compared"]} == {"8 clients", "0/s"}
    assert max(error["worst"] for error in document["errors"].values()) < 0.1


def test_the_command_writes_tables_and_a_document(tmp_path: Path, capsys):
    profile, mix, output = tmp_path / "p.json", tmp_path / "m.json", tmp_path / "out" / "simulation.json"
    profile.write_text(json.dumps(PROFILE.to_dict()))
    mix.write_text(json.dumps({"half": [0.5, 0.5]}))
    options = SimulateOptions(
        profile=str(profile), mix=mix, load="0.5,1.2", clients="4", engines="1,2", samples=400, output=output
    )
    assert run(options) == 0
    document = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(document["rows"]) == 2 * 3 * len(POLICIES)
    assert all((row["objective_ms"] is None) == (row["arrivals"] == "closed") for row in document["rows"])
    said = capsys.readouterr().out
    assert "Profile p (hypothetical, not measured), closed, 2 engines (two-choices)" in said
    assert "| mix | load | cost-model | run-to-completion |" in said
    assert simulation_section(document) in said
    assert json.loads(said.splitlines()[-1])["verdict"] == document["verdict"]


def test_the_verdict_counts_where_the_default_wins_and_names_its_worst_cell():
    place = {"profile": "p", "mix": "m", "arrivals": "poisson", "engines": 1}
    rows = [
        {**place, "load": load, "policy": policy, "goodput": goodput, "p99_ms": p99_ms}
        for load, ours, theirs in ((0.5, (10.0, 5.0), (10.05, 6.0)), (0.9, (12.0, 8.0), (10.0, 4.0)))
        for policy, (goodput, p99_ms) in (("cost-model", ours), ("full-first", theirs))
    ]
    (sentence,) = simulation_verdict(rows)
    assert sentence == (
        "cost-model against full-first, 2 cells: goodput better in 1, equal in 1, worse in 0, p99 better in 1, "
        "equal in 0, worse in 1; at worst -0.5 % goodput (p, mix m, poisson 0.5) and +100 % p99 (p, mix m, poisson 0.9)"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile": ""}, "no profile: give --profile"),
        ({"policy": "luck"}, "policy 'luck' is unknown: choose from cost-model"),
        ({"arrivals": "poisson,tides"}, "arrivals 'tides' is unknown"),
        ({"load": "0.5,x"}, "loads '0.5,x': give numbers"),
        ({"load": "0,1"}, "loads '0,1' are out of range"),
        ({"engines": "2,2"}, "engines '2,2' are out of range"),
        ({"clients": "1.5"}, "clients '1.5': give numbers"),
        ({"dispatch": "dice"}, "dispatch 'dice' is unknown: choose from two-choices, round-robin"),
    ],
)
def test_options_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SimulateOptions(**{"profile": "p.json", "mix": Path("m.json"), **values})
