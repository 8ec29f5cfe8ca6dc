"""The `offramp` command as a user types it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks.commands import COMMANDS as BENCHMARKS
from offramp import cli
from offramp.server.predict_options import PredictOptions
from offramp.server.settings import Settings
from offramp.training.options import CalibrateOptions, EvaluateOptions, TrainOptions
from tests.project import PROJECT

COMMANDS = (
    *("train", "evaluate", "calibrate", "serve", "predict", "paper"),
    *(f"bench {name}" for name in BENCHMARKS if name != "paper"),
)


@pytest.fixture
def call():
    def call(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return call


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in colour: a folder as a user has it."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, channel in (("cherry", 0), ("lime", 1)):
        (root / name).mkdir()
        for index in range(24):
            pixels = rng.integers(0, 90, (20, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, trained by the command line."""
    output = tmp_path_factory.mktemp("run") / "out"
    arguments = ["train", str(pictures), "--output", str(output), "--width", "4", "--input-size", "16"]
    arguments += ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--name", "fruit"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    (output / "console.txt").write_text(result.output)
    return output


def test_every_command_explains_itself_with_an_example(call):
    for name in COMMANDS:
        text = call(*name.split(), "--help")
        assert f"offramp {name}" in text
        assert "--" in text


def commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of a group, and the group itself, with the names that lead to it."""
    yield names, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


def test_help_at_80_columns_shows_every_name_and_default_whole():
    for names, command in commands(typer.main.get_command(cli.app)):
        result = CliRunner().invoke(cli.app, [*names, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
        assert "…" not in result.output.replace(", …", "")
        assert max(map(len, result.output.splitlines())) <= 80
        joined = re.sub(r"\s", "", result.output)
        for option in (parameter for parameter in command.params if parameter.param_type_name == "option"):
            assert any(re.search(rf"(?<!\S){name}(?![\w-])", result.output) for name in option.opts)
            if option.envvar:
                assert re.search(rf"(?<!\S){option.envvar}(?!\w)", result.output)
            if isinstance(option.default, str | int | float) and option.default and not option.is_flag:
                assert f"default:{option.default}" in joined
        for name, listed in getattr(command, "commands", {}).items():
            assert name + re.sub(r"\s", "", (listed.help or "").partition("\n")[0]) in joined


def test_completion_can_be_installed(call):
    assert "--install-completion" in call("--help")


def test_a_run_leaves_checkpoint_log_evaluation_and_bundle(trained: Path):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2]
    assert (trained / "checkpoint.pt").is_file()
    assert {path.name for path in (trained / "bundle").iterdir()} == {"model.json", "model.safetensors", "README.md"}
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert len(evaluation["exits"]) == 4
    assert (trained / "evaluation.png").stat().st_size > 10_000


def test_a_run_ends_with_one_table_and_three_sentences(trained: Path):
    *_, end = (trained / "console.txt").read_text().partition("| exit |")
    lines = end.splitlines()
    assert len(lines) <= 12
    assert [line.split("|")[1].strip() for line in lines[1:] if line.startswith("|")] == ["---:", "1", "2", "3", "4"]
    text = " ".join(lines)
    assert "Full depth is right on " in text
    assert "The default threshold is 1, full depth: 4 held-out pictures are too few for a lower one" in text
    assert "Nothing is certified: 4 held-out pictures are too few" in text
    assert "--calibration-size 49 certifies 10 %" in text
    assert f"All tables are in {trained}/bundle/README.md" in text
    assert f"offramp serve --model {trained}/bundle" in text


def test_a_run_is_not_overwritten(call, trained: Path, pictures: Path):
    before = (trained / "checkpoint.pt").read_bytes()
    text = call("train", pictures, "--output", trained, "--width", "4", "--input-size", "16", code=1)
    assert "--resume" in text
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_resuming_as_another_run_is_refused_by_name(call, trained: Path, pictures: Path):
    arguments = ["train", pictures, "--output", trained, "--width", "4", "--input-size", "16", "--resume"]
    text = call(*arguments, "--epochs", "2", "--batch-size", "8", "--seed", "5", "--device", "cpu", code=1)
    assert "seed 0, not 5" in " ".join(text.split())


def test_evaluate_reports_what_the_run_reported(call, trained: Path, pictures: Path, tmp_path: Path):
    call("evaluate", trained / "bundle", pictures, "--output", tmp_path, "--device", "cpu")
    reported = json.loads((tmp_path / "evaluation.json").read_text())
    assert reported == json.loads((trained / "evaluation.json").read_text())


def test_evaluate_refuses_another_data_set(call, trained: Path, pictures: Path, tmp_path: Path):
    other = tmp_path / "other"
    for name in ("plum", "pear"):
        (other / name).mkdir(parents=True)
        for source in sorted((pictures / "lime").iterdir()):
            (other / name / source.name).write_bytes(source.read_bytes())
    assert "plum" in call("evaluate", trained / "bundle", other, "--device", "cpu", code=1)


def test_calibrate_rewrites_the_bundle_in_place(call, trained: Path, pictures: Path, tmp_path: Path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for source in (trained / "bundle").iterdir():
        (bundle / source.name).write_bytes(source.read_bytes())
    weights = (bundle / "model.safetensors").read_bytes()
    output = tmp_path / "output"
    text = call("calibrate", bundle, pictures, "--tolerance", "1", "--device", "cpu", "--output", output)
    assert json.loads((bundle / "model.json").read_text())["threshold"] == 0.0
    assert "default threshold 0" in text
    assert "too few pictures were held out" in text
    assert (bundle / "model.safetensors").read_bytes() == weights
    assert json.loads((output / "calibration.json").read_text())["certificate"] is None
    assert (output / "calibration.png").stat().st_size > 10_000


def test_few_held_out_pictures_leave_full_depth_the_default_and_the_words_say_what_is_stored(
    call, trained: Path, pictures: Path, tmp_path: Path
):
    bundle = shutil.copytree(trained / "bundle", tmp_path / "bundle")
    text = call("calibrate", bundle, pictures, "--device", "cpu")
    stored = json.loads((bundle / "model.json").read_text())
    assert stored["threshold"] == json.loads((trained / "bundle" / "model.json").read_text())["threshold"] == 1.0
    assert stored["calibration"]["temperatures"] == [1.0] * 4
    searched = stored["training"]["calibration"]["searched"]
    sentence = (
        f"The default threshold is 1, full depth: {searched} held-out pictures do not tell which early answers lose at "
        "most 0.5 % of accuracy; 598 (hold out 1,495) do."
    )
    assert sentence in text
    assert sentence in (bundle / "README.md").read_text()
    assert f"Confidences are the network's own: {searched} held-out pictures" in text
    assert "default threshold 1;" in text


def test_calibrate_refuses_pictures_that_trained_the_weights(call, trained: Path, pictures: Path, tmp_path: Path):
    before = (trained / "bundle" / "model.json").read_bytes()
    text = call("calibrate", trained / "bundle", pictures, "--calibration-size", "20", "--device", "cpu", code=1)
    assert "--calibration-size 20 is not what training held out" in " ".join(text.split())
    changed = tmp_path / "changed"
    for source in sorted(pictures.glob("*/*.png"))[1:]:
        (changed / source.parent.name).mkdir(parents=True, exist_ok=True)
        (changed / source.parent.name / source.name).write_bytes(source.read_bytes())
    text = call("calibrate", trained / "bundle", changed, "--device", "cpu", code=1)
    assert "training held out" in text
    assert (trained / "bundle" / "model.json").read_bytes() == before


def test_calibrate_takes_unseen_pictures_step_costs_and_promises(call, trained: Path, pictures: Path, tmp_path: Path):
    bundle, profile = tmp_path / "bundle", tmp_path / "profile.json"
    bundle.mkdir()
    for source in (trained / "bundle").iterdir():
        (bundle / source.name).write_bytes(source.read_bytes())
    profile.write_text(json.dumps({"batch_sizes": [1, 32], "measured_s": [[0.001, 0.032]] * 4}))
    others = shutil.copytree(pictures, tmp_path / "others")
    arguments = [
        "--unseen",
        "--calibration-size",
        "38",
        "--max-disagreement",
        "0.2",
        "--costs",
        profile,
        "--keep-exits",
    ]
    assert "was trained on this very data" in call("calibrate", bundle, others, *arguments, code=1)
    for path in others.rglob("*.png"):
        Image.open(path).rotate(180).save(path)
    text = call("calibrate", bundle, others, *arguments, "--device", "cpu")
    assert "default threshold" in text
    description = json.loads((bundle / "model.json").read_text())
    assert description["certificate"]["pictures"] == 23
    assert description["training"]["calibration"]["pictures"] == 38
    fronts = description["fronts"]
    assert fronts["costs"]["sequential_ms"][-1] == 1.0 * len(description["exits"])


def test_predict_prints_label_exit_and_cost(call, trained: Path, pictures: Path):
    picture = pictures / "lime" / "3.png"
    text = call("predict", picture, "--model", trained / "bundle", "--threshold", "0", "--device", "cpu")
    assert re.search(r"(lime|cherry) [\d.]+%, .*; exit 1 of 4 \(confident\), \d+% of the full network's cost", text)
    document = json.loads(call("predict", picture, "--model", trained / "bundle", "--threshold", "1", "--json"))
    assert document["exit"] == 4
    assert document["exit_reason"] == "final"
    assert document["compute"] == 1.0


def test_predict_takes_a_name_that_is_not_utf8(call, trained: Path, pictures: Path, tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copyfile(pictures / "cherry" / "0.png", odd)
    assert call("predict", odd, "--model", trained / "bundle").startswith(f"{tmp_path}/caf\\xe9.png: ")
    assert json.loads(call("predict", odd, "--model", trained / "bundle", "--json"))["image"].endswith("caf\\xe9.png")


def test_predict_names_a_file_that_is_no_picture(call, trained: Path, tmp_path: Path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    assert "notes.jpg" in call("predict", tmp_path / "notes.jpg", "--model", trained / "bundle", code=1)


def test_predict_goes_on_after_files_without_an_answer_and_lists_them_at_the_end(
    call, trained: Path, pictures: Path, tmp_path: Path
):
    whole, broken, missing = pictures / "lime" / "3.png", tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(whole.read_bytes()[:100])
    files = [broken, whole, missing, tmp_path, pictures / "cherry" / "4.png"]
    text = call("predict", *files, "--model", trained / "bundle", "--device", "cpu", code=1)
    answers, failures = text.split("offramp predict: 3 of 5 pictures have no answer\n")
    assert [line.split(":")[0] for line in answers.splitlines()] == [str(files[1]), str(files[4])]
    assert [line.split(":")[0] for line in failures.splitlines()] == [str(broken), str(missing), str(tmp_path)]


def test_a_folder_that_is_no_bundle_is_named(call, tmp_path: Path):
    assert "model.json" in call("predict", "x.png", "--model", tmp_path, code=1)


def test_options_also_come_from_the_environment(trained: Path, pictures: Path):
    environment = {**os.environ, "OFFRAMP_THRESHOLD": "0", "OFFRAMP_DEVICE": "cpu", "COLUMNS": "200"}
    command = [sys.executable, "-m", "offramp", "predict", str(pictures / "lime" / "3.png")]
    command += ["--model", str(trained / "bundle"), "--json"]
    result = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["exit"] == 1


def test_an_option_out_of_range_is_refused(call, trained: Path, pictures: Path):
    text = call("predict", pictures / "lime" / "3.png", "--model", trained / "bundle", "--threshold", "1.5", code=2)
    assert "less than or equal to 1" in " ".join(text.split())


def test_sigterm_ends_the_first_process_of_a_container_while_it_loads():
    unshare = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespace can be made here")
    command = [*unshare, sys.executable, "-m", "offramp", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as outer:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        while not (pids := children.read_text().split()):
            assert outer.poll() is None
        status = Path(f"/proc/{pids[0]}/status")
        # A bit for each signal that the process handles; the first is of signal 1.
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> signal.SIGTERM - 1 & 1:
            assert outer.poll() is None
        os.kill(int(pids[0]), signal.SIGTERM)
        _, errors = outer.communicate()
        assert errors == ""
    assert outer.returncode == 128 + signal.SIGTERM


def test_the_command_line_reference_is_what_the_declarations_say():
    written = (PROJECT / "docs" / "cli.md").read_text()
    benchmarks = (options for options, _, _ in BENCHMARKS.values())
    for options in (TrainOptions, EvaluateOptions, CalibrateOptions, Settings, PredictOptions, *benchmarks):
        for field in fields(options):
            assert f"OFFRAMP_{field.name.upper()}" in written or f"{field.name.upper()}" in written.upper(), field.name
    command = [sys.executable, "-m", "typer", "offramp.cli", "utils", "docs", "--name", "offramp"]
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    made = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True).stdout
    assert written.strip() == made.strip(), "docs/cli.md is stale: run make docs"
