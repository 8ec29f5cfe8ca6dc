"""The simulator: runs that can be computed by hand, and properties of all runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.errors import BenchmarkError
from benchmarks.options import SimulateOptions
from benchmarks.simulate.arrivals import ARRIVALS, Mix, mix_of_exits, read_mixes
from benchmarks.simulate.report import conclusions, simulation_section
from benchmarks.simulate.simulate import capacity, figures, read_profile, run
from benchmarks.simulate.simulator import Fleet, Simulation, SimulationResult
from offramp.server.engine.policies import POLICIES, RunToCompletion
from offramp.server.engine.profile import CostProfile

# Binary fractions, so that sums are exact. Stage 1: 1 s and 0.25 s a sample more; stage 2: twice that.
PROFILE = CostProfile(4, (1, 2, 4), ((1.0, 1.25, 1.75), (2.0, 2.5, 3.5)))
FLEET = Fleet(PROFILE, lambda profile: RunToCompletion(), 4, max_wait_s=float("inf"))
HALF = Mix("half", (0.5, 0.5))


def simulation(fleet: Fleet, exits: list[int], seed: int = 0) -> Simulation:
    return Simulation(fleet, np.array(exits), np.random.default_rng(seed))


def test_latency_is_what_a_request_waits_and_the_steps_it_goes_through():
    result = simulation(FLEET, [2, 1, 2]).open_loop(np.array([0.0, 0.5, 2.0]))
    # 0..1: the first alone; 1..3: its stage 2, while two come in; 3..4.25: both; 4.25..6.25: the one that goes on.
    assert result.latency_s.tolist() == [3.0, 3.75, 4.25]
    assert result.arrived_s.tolist() == [0.0, 0.5, 2.0]
    assert result.mean_batch == 5 / 4


def test_an_engine_refuses_samples_beyond_its_limit():
    result = simulation(replace(FLEET, max_inflight=2), [1] * 4).open_loop(np.array([0.0, 0.25, 0.5, 1.5]))
    assert np.isnan(result.latency_s).tolist() == [False, False, True, False]


def test_an_engine_refuses_samples_that_would_wait_too_long():
    # One second a sample, so far: two in flight mean two seconds.
    impatient = replace(FLEET, max_wait_s=1.5)
    result = simulation(impatient, [1] * 4).open_loop(np.array([0.0, 2.0, 2.25, 2.5]))
    assert np.isnan(result.latency_s).tolist() == [False, False, False, True]


def test_clients_of_a_closed_loop_ask_anew_when_they_are_answered():
    result = simulation(FLEET, [1] * 5).closed_loop(2)
    # Both at once go into one step, and so again; the last one alone.
    assert result.arrived_s.tolist() == [0.0, 0.0, 1.25, 1.25, 2.5]
    assert result.latency_s.tolist() == [1.25, 1.25, 1.25, 1.25, 1.0]


def test_the_engine_does_not_wait_for_clients_that_it_has_just_answered():
    result = simulation(FLEET, [1, 2, 1, 1]).closed_loop(2)
    # 0..1.25: both; the one goes on, 1.25..3.25, while the other asks anew; that one runs alone, 3.25..4.25.
    assert result.arrived_s.tolist() == [0.0, 0.0, 1.25, 3.25]
    assert result.latency_s.tolist() == [1.25, 3.25, 3.0, 2.0]


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
def test_every_request_is_answered_and_never_sooner_than_alone(name, exits, gaps_s, engines, clients):
    fleet = replace(FLEET, policy=POLICIES[name], engines=engines)
    alone_s = np.array([1.0, 3.0])[np.array(exits) - 1]
    open_loop = simulation(fleet, exits).open_loop(np.cumsum(gaps_s[: len(exits)]))
    closed_loop = simulation(fleet, exits).closed_loop(clients)
    for result in (open_loop, closed_loop):
        assert (result.latency_s >= alone_s - 1e-9).all()


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


def test_a_mix_is_drawn_as_it_is_and_counts_samples_that_reach_a_stage():
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
def test_a_file_without_mixes_is_refused(tmp_path: Path, content, error, message):
    path = tmp_path / "mix.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        read_mixes(path, 2)


def test_capacity_is_that_of_full_batches():
    assert capacity(FLEET, HALF) == pytest.approx(1 / (1.75 / 4 + 0.5 * 3.5 / 4))


def test_figures_leave_the_warm_up_out_and_count_only_answers_in_time():
    latency_s = np.array([100.0, 100.0, 1.0, 2.0, 3.0, np.nan, 1.0, 1.0, 9.0, 1.0])
    run_figures = figures(SimulationResult(np.arange(10.0), latency_s, 2.5), 2.0, 4.0)
    assert run_figures["goodput"] == pytest.approx(5 / 7)
    assert run_figures["goodput_share"] == pytest.approx(5 / 28)
    assert run_figures["throughput"] == pytest.approx(7 / 7)
    assert run_figures["refused"] == pytest.approx(1 / 8)
    assert run_figures["p50_ms"] == pytest.approx(1000.0)
    assert figures(SimulationResult(np.arange(10.0), latency_s, 2.5), None, 4.0)["goodput"] == pytest.approx(7 / 7)
    assert figures(SimulationResult(np.arange(10.0), np.full(10, np.nan), 0.0), 2.0, 4.0)["p99_ms"] is None


def test_a_profile_that_was_not_measured_is_hypothetical(tmp_path: Path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(PROFILE.to_dict()))
    assert (read_profile(path).name, read_profile(path).measured) == ("some", False)
    path.write_text(json.dumps({**PROFILE.to_dict(), "name": "two cores", "measured": True}))
    assert (read_profile(path).name, read_profile(path).measured) == ("two cores", True)
    path.write_text("{")
    with pytest.raises(BenchmarkError, match="holds no cost profile"):
        read_profile(path)


def test_the_command_writes_tables_and_a_document(tmp_path: Path, capsys):
    profile, mix, output = tmp_path / "p.json", tmp_path / "m.json", tmp_path / "out" / "simulation.json"
    profile.write_text(json.dumps(PROFILE.to_dict()))
    mix.write_text(json.dumps({"half": [0.5, 0.5]}))
    options = SimulateOptions(
        profile=str(profile), mix=mix, load="0.5,1.2", clients="4", engines="1,2", samples=400, output=output
    )
    run(options)
    document = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(document["rows"]) == 2 * 3 * len(POLICIES)
    assert all((row["objective_ms"] is None) == (row["arrivals"] == "closed") for row in document["rows"])
    said = capsys.readouterr().out
    assert "Profile p (hypothetical, not measured), closed, 2 engines (two-choices)" in said
    assert "| mix | load | cost-model | run-to-completion |" in said
    assert simulation_section(document) in said
    assert json.loads(said.splitlines()[-1])["verdict"] == document["verdict"]


def test_the_conclusions_count_where_the_default_wins_and_names_its_worst_cell():
    place = {"profile": "p", "mix": "m", "arrivals": "poisson", "engines": 1}
    rows = [
        {**place, "load": load, "policy": policy, "goodput": goodput, "p99_ms": p99_ms}
        for load, ours, theirs in ((0.5, (10.0, 5.0), (10.05, 6.0)), (0.9, (12.0, 8.0), (10.0, 4.0)))
        for policy, (goodput, p99_ms) in (("cost-model", ours), ("full-first", theirs))
    ]
    (sentence,) = conclusions(rows)
    assert sentence == (
        "cost-model against full-first, 2 cells: goodput better in 1, equal in 1, worse in 0, p99 better in 1, "
        "equal in 0, worse in 1; at worst -0.5 % goodput (p, mix m, poisson 0.5) and +100 % p99 (p, mix m, poisson 0.9)"
    )
