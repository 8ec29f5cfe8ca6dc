"""`offramp paper`: plans, resumes, shares runs with other processes, and says no more than the seeds show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.errors import BenchmarkError
from benchmarks.options import PaperOptions
from benchmarks.training.paper import OutOfTime, plan_runs, row_of, run, train_one
from benchmarks.training.paper_report import PUBLISHED, conclusions, estimate, paired_gain, paper_section
from offramp.training.lock import lock_folder

MakeRow = Callable[..., dict[str, Any]]


@pytest.fixture
def options(tmp_path: Path) -> PaperOptions:
    """One epoch of a tiny ResNet on pictures of three colours."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for channel in range(3):
            folder = tmp_path / "colours" / part / "rgb"[channel]
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return PaperOptions(
        str(tmp_path / "colours"),
        runs=tmp_path / "runs",
        width=4,
        methods="baseline,dsn",
        seeds="0,1",
        epochs=1,
        device="cpu",
        precision="float32",
        output=tmp_path / "paper.json",
    )


@pytest.fixture
def row() -> MakeRow:
    """A row as a finished run gives it; accuracies in %."""

    def make(method: str, seed: int, accuracy: tuple[float, ...], ensemble: float) -> dict[str, Any]:
        shares = [value / 100 for value in accuracy]
        cost = [100 * (k + 1) for k in range(len(accuracy))]
        return {
            "network": "net", "data": "CIFAR-100, test", "recipe": "fast", "epochs": 3, "batch_size": 9,
            "method": method, "seed": seed, "accuracy": shares, "served": shares, "ensemble": ensemble / 100,
            "parameters": 1_500_000, "backbone_multiply_adds": 200,
            "sequential_multiply_adds": cost, "as_published_multiply_adds": cost,
            "hours": 0.5, "hardware": "cpu", "command": "offramp train",
        }  # fmt: skip

    return make


def test_seeds_are_outermost_so_that_a_budget_leaves_methods_equally_far(options: PaperOptions) -> None:
    runs = plan_runs(options)
    assert [(wanted.method, wanted.seed) for wanted in runs] == [
        ("baseline", 0), ("dsn", 0), ("baseline", 1), ("dsn", 1)
    ]  # fmt: skip
    assert len({wanted.output for wanted in runs}) == 4
    assert {(wanted.width, wanted.epochs, wanted.recipe) for wanted in runs} == {(4, 1, "fast")}


def test_width_and_length_default_to_the_architectures_and_the_recipes(options: PaperOptions) -> None:
    plain = plan_runs(replace(options, width=None, epochs=None, architectures="resnet18,mobilenetv2"))
    assert [(wanted.architecture, wanted.width) for wanted in plain[::2]][:2] == [
        ("resnet18", 64),
        ("mobilenetv2", 32),
    ]
    assert {wanted.epochs for wanted in plain} == {30}


def test_a_name_that_is_unknown_is_refused_before_any_training(options: PaperOptions) -> None:
    unknown: tuple[tuple[dict[str, Any], str], ...] = (
        ({"recipe": "long"}, "recipe 'long' is unknown"),
        ({"methods": "dsn,magic"}, "method 'magic' is unknown: choose one of baseline"),
        ({"architectures": "resnet81"}, "architecture 'resnet81' is unknown"),
    )
    for changes, message in unknown:
        with pytest.raises(ValueError, match=message):
            run(replace(options, width=None, **changes))
    assert not options.runs.exists()


def test_runs_are_trained_once_and_the_table_is_made_of_them(
    options: PaperOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    run(options)
    assert capsys.readouterr().err.count(": begun at epoch 1") == 4
    document = json.loads(options.output.read_text())
    assert [(r["method"], r["seed"], len(r["accuracy"])) for r in document["rows"]] == [
        ("baseline", 0, 1), ("baseline", 1, 1), ("dsn", 0, 4), ("dsn", 1, 4)
    ]  # fmt: skip
    evaluation = json.loads((plan_runs(options)[1].output / "evaluation.json").read_text())
    assert document["rows"][2]["accuracy"] == [exit["accuracy"] for exit in evaluation["exits"]]
    run(options)
    captured = capsys.readouterr()
    assert paper_section(document) in captured.out
    assert "begun" not in captured.err
    assert json.loads(options.output.read_text())["rows"] == document["rows"]


def test_variations_trained_by_hand_join_the_table_under_their_changes(options: PaperOptions) -> None:
    (plain,) = plan_runs(replace(options, methods="journal", seeds="0"))
    variation = replace(
        plain, output=options.runs / "mine", feature_term="off", ema=0.5, cutout=4, teacher=plain.output / "bundle"
    )
    for wanted in (plain, variation):
        train_one(wanted, deadline_s=math.inf)
    run(replace(options, methods="journal", seeds="0"))
    assert [r["method"] for r in json.loads(options.output.read_text())["rows"]] == [
        "journal", "journal, ema 0.5, feature_term off, cutout 4, teacher colours-resnet18 (0.5 of the loss, T = 4)",
    ]  # fmt: skip


def test_a_run_cut_short_by_the_budget_goes_on_where_it_was(
    options: PaperOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    (wanted,) = plan_runs(replace(options, methods="dsn", seeds="0", epochs=2))
    with pytest.raises(OutOfTime):
        train_one(wanted, deadline_s=0.0)
    assert not wanted.output.exists()
    # The time is up while the first epoch is trained.
    with pytest.raises(OutOfTime):
        train_one(wanted, deadline_s=10.0, clock=iter((9.0, 11.0)).__next__)
    assert not (wanted.output / "evaluation.json").exists()
    train_one(wanted, deadline_s=math.inf)
    assert "resumed at epoch 2" in capsys.readouterr().err
    assert (wanted.output / "evaluation.json").exists()


def test_a_run_that_another_process_holds_is_left_to_it(
    options: PaperOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = plan_runs(replace(options, methods="dsn"))
    with lock_folder(first.output) as mine:
        assert mine
        run(replace(options, methods="dsn"))
    output = capsys.readouterr().err
    assert "1 runs are finished, 1 are left (1 of them in other processes" in output
    assert not (first.output / "evaluation.json").exists()
    with lock_folder(first.output) as later:
        assert later


def test_a_run_that_fails_does_not_keep_the_others_from_their_table(
    options: PaperOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = plan_runs(replace(options, methods="dsn"))
    train_one(replace(first, width=5), deadline_s=math.inf)
    (first.output / "evaluation.json").unlink()
    run(replace(options, methods="dsn"))
    output = capsys.readouterr().err
    assert f"{first.output.name}: failed: " in output
    assert "1 runs are finished, 1 are left, 1 failed" in output
    assert [row["seed"] for row in json.loads(options.output.read_text())["rows"]] == [second.seed]


def test_two_runs_that_look_alike_are_refused(options: PaperOptions) -> None:
    (wanted,) = plan_runs(replace(options, methods="dsn", seeds="0"))
    for name in ("one", "two"):
        train_one(replace(wanted, output=options.runs / name), deadline_s=math.inf)
    with pytest.raises(BenchmarkError, match="two runs of resnet18, width 4, 64 pixels, dsn, seed 0, look alike"):
        run(replace(options, methods="dsn", seeds="0"))


def test_data_sets_are_never_compared(row: MakeRow) -> None:
    rows = [row("baseline", 0, (60.0,), 60.0), {**row("dsn", 0, (50.0, 61.0), 62.0), "data": "CIFAR-10, test"}]
    text = paper_section({"rows": rows, "date": "2026-01-02T03:04:05", "command": "python -m offramp paper"})
    assert "**CIFAR-100: net" in text
    assert "**CIFAR-10: net" in text
    assert "+1.00" not in text


def test_without_any_finished_run_there_is_no_table(options: PaperOptions) -> None:
    with pytest.raises(BenchmarkError, match="no run of 4 is finished yet: give more --hours, or fewer --epochs"):
        run(replace(options, hours=1e-9))
    assert not options.output.exists()


def test_a_run_of_another_form_is_named(options: PaperOptions) -> None:
    folder = options.runs / "strange"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text("{}")
    with pytest.raises(BenchmarkError, match=r"not a finished run of this version .* move it away to train it again"):
        row_of(folder)


def test_an_estimate_is_mean_deviation_and_students_interval() -> None:
    of_three = estimate([1.0, 2.0, 3.0])
    assert (of_three.n, of_three.mean, of_three.deviation) == (3, 2.0, 1.0)
    # t of 97.5 % with two degrees of freedom: 4.3027.
    assert of_three.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert math.isnan(estimate([5.0]).half_width)


def test_gains_are_paired_by_seed(row: MakeRow) -> None:
    journal = [row("journal", seed, (50.0 + seed, 60.0 + seed), 62.0 + seed) for seed in (0, 1, 5)]
    dsn = [row("dsn", seed, (49.0 + seed, 61.0), 60.0 + seed) for seed in (0, 1, 2)]
    shallow, deepest, ensemble = (paired_gain(journal, dsn, exit) for exit in (1, -1, None))
    assert shallow is not None
    assert [shallow.n, shallow.mean, shallow.deviation] == pytest.approx([2, 1.0, 0.0])
    assert deepest is not None
    assert deepest.mean == pytest.approx(-0.5)
    assert ensemble is not None
    assert ensemble.mean == pytest.approx(2.0)
    assert paired_gain(journal[2:], dsn, 1) is None
    assert paired_gain(journal, [row("baseline", 0, (55.0,), 55.0)], 1) is None


def test_the_conclusions_claim_what_the_interval_allows(row: MakeRow) -> None:
    seeds = (0, 1, 2)
    methods = {
        "baseline": [row("baseline", s, (60.0 + s,), 60.0 + s) for s in seeds],
        "dsn": [row("dsn", s, (50.0 + s, 61.0 + s), 62.0 + s) for s in seeds],
        "journal": [row("journal", s, (52.0 + s + 0.1 * (s % 2), 61.0 + 2 * s), 61.0 + s) for s in seeds],
    }
    sentences = " ".join(conclusions(methods))
    assert "dsn against the plain network, deepest exit: +1.00 ± 0.00 points (95 % of 3 seeds), better" in sentences
    assert "journal against deep supervision: exit 1 +2.03 ± 0.14 points (95 % of 3 seeds), better" in sentences
    assert "deepest exit +1.00 ± 2.48 points (95 % of 3 seeds), no significant difference" in sentences
    assert "ensemble -1.00 ± 0.00 points (95 % of 3 seeds), worse" in sentences
    two = {method: rows[:2] for method, rows in methods.items()}
    assert "over 2 seeds, too few to compare" in " ".join(conclusions(two))
    assert "better" not in " ".join(conclusions(two))


def test_the_table_stands_beside_the_published_rows(row: MakeRow) -> None:
    rows = [row("baseline", 0, (60.0,), 60.0), row("dsn", 0, (50.0, 61.0), 62.0), row("dsn", 1, (52.0, 62.0), 63.0)]
    text = paper_section({"rows": rows, "date": "2026-01-02T03:04:05", "command": "python -m offramp paper"})
    assert "| baseline | 1 |  | 60.00 |" in text
    assert "| dsn | 2 | 51.00 ± 1.41 | 61.50 ± 0.71 | 62.50 ± 0.71 | 61.50 ± 0.71 | +1.00 | +2.00 |  |" in text
    assert all(published.source in text for published in PUBLISHED)
    assert "| ResNet-18, Be Your Own Teacher (ICCV 2019) | 77.09 | 67.85 | 74.57 | 78.23 | 78.64 | 79.67 |" in text
