"""The simulator: runs that can be computed by hand, and properties of all runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.errors import BenchmarkError
from benchmarks.options import SimulateOptions
from benchmarks.simulate.mixes import Mix, read_mixes
from benchmarks.simulate.report import conclusions, simulation_section
from benchmarks.simulate.simulate import capacity, figures, poisson, read_profile, run
from benchmarks.simulate.simulator import Simulation, SimulationResult
from offramp.server.engine.policies import POLICIES, RunToCompletion
from offramp.server.engine.profile import CostProfile

# Binary fractions, so that sums are exact. Stage 1: 1 s and 0.25 s a sample more; stage 2: twice that.
PROFILE = CostProfile(4, (1, 2, 4), ((1.0, 1.25, 1.75), (2.0, 2.5, 3.5)))
HALF = Mix("half", (0.5, 0.5))


def simulation(exits: list[int], max_wait_s: float = math.inf) -> Simulation:
    return Simulation(PROFILE, RunToCompletion(), exits, max_wait_s)


def test_latency_is_what_a_request_waits_and_the_steps_it_goes_through():
    result = simulation([2, 1, 2]).open_loop(np.array([0.0, 0.5, 2.0]))
    # 0..1: the first alone; 1..3: its stage 2, while two come in; 3..4.25: both; 4.25..6.25: the one that goes on.
    assert result.latency_s.tolist() == [3.0, 3.75, 4.25]
    assert result.arrived_s.tolist() == [0.0, 0.5, 2.0]
    assert result.mean_batch == 5 / 4


def test_an_engine_refuses_samples_that_would_wait_too_long():
    # One second a sample, so far: two in flight mean two seconds.
    result = simulation([1] * 4, max_wait_s=1.5).open_loop(np.array([0.0, 2.0, 2.25, 2.5]))
    assert np.isnan(result.latency_s).tolist() == [False, False, False, True]


def test_clients_of_a_closed_loop_ask_anew_when_they_are_answered():
    result = simulation([1] * 5).closed_loop(2)
    # Both at once go into one step, and so again; the last one alone.
    assert result.arrived_s.tolist() == [0.0, 0.0, 1.25, 1.25, 2.5]
    assert result.latency_s.tolist() == [1.25, 1.25, 1.25, 1.25, 1.0]


def test_the_engine_does_not_wait_for_clients_that_it_has_just_answered():
    result = simulation([1, 2, 1, 1]).closed_loop(2)
    # 0..1.25: both; the one goes on, 1.25..3.25, while the other asks anew; that one runs alone, 3.25..4.25.
    assert result.arrived_s.tolist() == [0.0, 0.0, 1.25, 3.25]
    assert result.latency_s.tolist() == [1.25, 3.25, 3.0, 2.0]


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=40)
@given(
    exits=st.lists(st.integers(1, 2), min_size=1, max_size=60),
    gaps_s=st.lists(st.floats(0, 4), min_size=60, max_size=60),
    clients=st.integers(1, 9),
)
def test_every_request_is_answered_and_never_sooner_than_alone(name, exits, gaps_s, clients):
    alone_s = np.array([1.0, 3.0])[np.array(exits) - 1]
    open_loop = Simulation(PROFILE, POLICIES[name](PROFILE), exits).open_loop(np.cumsum(gaps_s[: len(exits)]))
    closed_loop = Simulation(PROFILE, POLICIES[name](PROFILE), exits).closed_loop(clients)
    for result in (open_loop, closed_loop):
        assert (result.latency_s >= alone_s - 1e-9).all()


def test_arrivals_rise_come_at_the_rate_asked_for_and_are_the_same_for_the_same_seed():
    times_s = poisson(50.0, 40_000, np.random.default_rng(3))
    assert len(times_s) == 40_000
    assert (np.diff(times_s) >= 0).all()
    assert 40_000 / times_s[-1] == pytest.approx(50.0, rel=0.1)
    assert (times_s == poisson(50.0, 40_000, np.random.default_rng(3))).all()
    counts = np.histogram(times_s, bins=400)[0]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.4)


def test_a_mix_is_drawn_as_it_is_and_counts_samples_that_reach_a_stage():
    mix = Mix("taken", (0.5, 0.0, 0.25, 0.25))
    assert mix.reaching == (1.0, 0.5, 0.5, 0.25)
    drawn = mix.draw(20_000, np.random.default_rng(5))
    assert np.bincount(drawn, minlength=5)[1:] / 20_000 == pytest.approx(mix.shares, abs=0.02)


def test_mixes_are_read_from_bench_results_and_from_shares_by_name(tmp_path: Path):
    bench, lists = tmp_path / "bench.json", tmp_path / "lists.json"
    bench.write_text(json.dumps({"rows": [{"threshold": 0.5, "exit_mix": [0.75, 0.25]}]}))
    lists.write_text(json.dumps({"shares": [0.25, 0.75], "all deep": [0, 1]}))
    assert read_mixes(bench, 2) == (Mix("0.5", (0.75, 0.25)),)
    assert read_mixes(lists, 2) == (Mix("shares", (0.25, 0.75)), Mix("all deep", (0.0, 1.0)))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("no JSON", BenchmarkError, "holds no exit mixes"),
        ('{"a": 5}', BenchmarkError, "holds no exit mixes"),
        ('{"rows": [{}]}', BenchmarkError, "holds no exit mixes"),
        ('{"a": [0.5, 0.6]}', ValueError, "adding up to 1"),
        ('{"a": []}', ValueError, "give one for each exit"),
        ('{"a": [0.5, 0.25, 0.25]}', ValueError, "has 3 exits, the profile 2 stages"),
    ],
)
def test_a_file_without_mixes_is_refused(tmp_path: Path, content, error, message):
    path = tmp_path / "mix.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        read_mixes(path, 2)


def test_capacity_is_that_of_full_batches():
    assert capacity(PROFILE, HALF) == pytest.approx(1 / (1.75 / 4 + 0.5 * 3.5 / 4))


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
    options = SimulateOptions(profile=str(profile), mix=mix, load="0.5,1.2", clients="4", samples=400, output=output)
    run(options)
    document = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(document["rows"]) == 3 * len(POLICIES)
    assert all((row["objective_ms"] is None) == (row["arrivals"] == "closed") for row in document["rows"])
    said = capsys.readouterr().out
    assert "Profile p (hypothetical, not measured), closed.**" in said
    assert "| mix | load | cost-model | run-to-completion |" in said
    assert simulation_section(document) in said
    assert json.loads(said.splitlines()[-1])["conclusions"] == document["conclusions"]


def test_the_conclusions_count_where_the_default_wins_and_names_its_worst_cell():
    place = {"profile": "p", "mix": "m", "arrivals": "poisson"}
    rows = [
        {**place, "load": load, "policy": policy, "goodput": goodput, "p99_ms": p99_ms}
        for load, default, other in ((0.5, (10.0, 5.0), (10.05, 6.0)), (0.9, (12.0, 8.0), (10.0, 4.0)))
        for policy, (goodput, p99_ms) in (("cost-model", default), ("full-first", other))
    ]
    (sentence,) = conclusions(rows)
    assert sentence == (
        "cost-model against full-first, 2 cells: goodput better in 1, equal in 1, worse in 0, p99 better in 1, "
        "equal in 0, worse in 1; at worst -0.5 % goodput (p, mix m, poisson 0.5) and +100 % p99 (p, mix m, poisson 0.9)"
    )
