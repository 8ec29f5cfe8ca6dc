"""A stranger's network, from a Python file to a served bundle, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from offramp import cli
from offramp.models.backbones import BACKBONES
from offramp.models.bundle import load_bundle
from offramp.server.loading import load_registry
from offramp.server.metrics import Metrics
from offramp.server.settings import Settings
from tests.project import PYTHONPATH

EXAMPLE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "my_nets.py"

SMALL = """
import my_nets
from offramp.models.attach import attach_exits


def build(config):
    network = my_nets.SplitNet(config.num_classes, width=16, drop=0.2)
    return attach_exits(network, ["stage1", "stage2.3", "stage3"], config.input_size)


BACKBONES = {"small_split": build}
"""

pytestmark = pytest.mark.usefixtures("own_networks")


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, channel in (("cherry", 0), ("lime", 1)):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "fruit" / name / f"{index}.png")
    return tmp_path / "fruit"


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_from_a_python_file_to_a_served_bundle(pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "small_nets.py"
    source.write_text(SMALL)
    (tmp_path / "my_nets.py").write_text(EXAMPLE.read_text())
    own, bundle = ["--backbones", source], tmp_path / "run" / "bundle"
    size = ["--input-size", 32, "--batch-size", 8, "--epochs", 1, "--device", "cpu", "--workers", 0]
    call("train", pictures, *own, "--architecture", "small_split", *size, "--output", tmp_path / "run")
    call("evaluate", bundle, pictures, *own, "--device", "cpu", "--workers", 0)
    call("calibrate", bundle, pictures, *own, "--device", "cpu", "--workers", 0)
    picture = pictures / "lime" / "3.png"
    answer = json.loads(call("predict", picture, "--model", bundle, *own, "--threshold", 1, "--json"))
    assert (answer["exit"], answer["exits"]) == (4, 4)
    description = json.loads((bundle / "model.json").read_text())
    assert description["config"]["architecture"] == "small_split"
    assert "--backbones" in description["training"]["command"]

    # The server is another process, which does not know the network until --backbones names it.
    del BACKBONES["small_split"], sys.modules["small_nets"]
    assert "name its module with --backbones" in call("predict", picture, "--model", bundle, code=1)
    registry = load_registry(Settings(model=[bundle], backbones=str(source), device="cpu"), Metrics())
    (served,) = registry.served
    served.warm_up()
    assert served.num_exits == 4
    assert load_bundle(bundle).net.config.architecture == "small_split"


def test_a_project_with_folders_of_the_same_names_uses_the_package(tmp_path: Path) -> None:
    for name in ("models", "server", "training", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("WHOSE = 'the project'\n")
    (tmp_path / "my_nets.py").write_text(
        "import models\nfrom offramp.models.attach import attach_exits\n\nassert models.WHOSE == 'the project'\n\n\n"
        "def build(config):\n    return attach_exits(None, [], 32)\n\n\nBACKBONES = {'own': build}\n"
    )
    picture = EXAMPLE.parent.parent / "pictures" / "rocket.jpg"
    command = [sys.executable, "-m", "offramp", "predict", str(picture), "--backbones", "my_nets.py", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment | {"PYTHONPATH": PYTHONPATH}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["label"] == "rocket"
