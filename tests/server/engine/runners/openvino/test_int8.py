"""int8: stages in eight-bit integers, whose ranges are learnt from pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.models.bundle import Bundle, save_bundle
from offramp.models.preprocess import Preprocessing
from offramp.server.engine.engine import Engine
from offramp.server.engine.runners.agreement import example_pictures, probabilities
from offramp.server.engine.runners.checked import CheckedRunner
from offramp.server.engine.runners.choice import choose_runner
from offramp.server.engine.runners.openvino.runner import OpenVinoRunner
from offramp.server.engine.runners.torch_runner import TorchRunner
from offramp.server.loading import load_registry
from offramp.server.metrics import Metrics
from offramp.server.picture_files import read_pictures
from offramp.server.settings import Settings
from tests.bundles import tiny_bundle
from tests.project import PYTHONPATH
from tests.server.engine.lively import SIZE, lively_net

CPU = torch.device("cpu")
PICTURES = example_pictures(SIZE, 64)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    net = lively_net(PICTURES, 5)
    whole = tiny_bundle()
    return Bundle(
        "lively", "1", net.config, Preprocessing(SIZE), tuple("abcde"), whole.calibration, whole.threshold, net
    )


@pytest.fixture(scope="module")
def runner(bundle) -> OpenVinoRunner:
    runner = choose_runner(bundle, CPU, precision="int8", threads=1, pictures=PICTURES[:40])
    assert isinstance(runner, CheckedRunner)
    assert isinstance(runner.chosen, OpenVinoRunner)
    return runner.chosen


def test_every_stage_computes_its_convolutions_in_integers(runner):
    assert runner.precision == "int8"
    for stage in runner._stages:
        kinds = Counter(operation.get_type_name() for operation in stage.network.get_ops())
        # Of what goes in; weights are integers already.
        assert kinds["FakeQuantize"] >= kinds["Convolution"] > 0
        weights = [op for op in stage.network.get_ops() if op.get_type_name() == "Constant" and op.get_byte_size() > 64]
        assert any(op.get_element_type().to_string() == "i8" for op in weights)


def test_answers_are_near_the_references_and_not_its_own(runner, bundle):
    differences = np.abs(probabilities(runner, PICTURES) - probabilities(TorchRunner(bundle, CPU), PICTURES))
    assert 0.0 < differences.mean() < 0.02
    assert differences.max() < 0.3


def test_batch_mates_change_no_bit_of_an_answer(runner):
    alone = probabilities(runner, PICTURES, 1)
    for batch_size in (2, 5, 64):
        np.testing.assert_array_equal(probabilities(runner, PICTURES, batch_size), alone)


def test_the_ranges_are_those_of_the_pictures(runner, bundle):
    dark = [picture // 32 for picture in PICTURES[:40]]
    of_dark = choose_runner(bundle, CPU, precision="int8", threads=1, pictures=dark)
    reference = probabilities(TorchRunner(bundle, CPU), PICTURES)
    right, wrong = (np.abs(probabilities(each, PICTURES) - reference).mean() for each in (runner, of_dark))
    assert wrong > 2 * right


def test_without_pictures_it_is_refused(bundle):
    with pytest.raises(ValueError, match=r"int8' learns its ranges from pictures: give some \(--int8-pictures"):
        choose_runner(bundle, CPU, precision="int8")


def test_without_nncf_it_is_refused_with_the_command_that_brings_it(tmp_path):
    # In a process of its own, in which NNCF is a package that cannot be imported.
    (tmp_path / "nncf.py").write_text("raise ImportError")
    code = "from offramp.server.engine.runners.openvino.int8 import quantize_stages; quantize_stages([], [None])"
    paths = os.pathsep.join([str(tmp_path), PYTHONPATH])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ValueError: precision 'int8' needs NNCF: pip install 'offramp[int8]'" in result.stderr


def test_a_server_learns_from_the_pictures_of_a_folder(tmp_path):
    save_bundle(tiny_bundle(), tmp_path / "bundle", "A card.")
    for n, picture in enumerate(PICTURES[:12]):
        Image.fromarray(picture).save(tmp_path / f"{n}.png")
    settings = Settings(model=[tmp_path / "bundle"], precision="int8", int8_pictures=tmp_path)
    [served] = load_registry(settings, Metrics()).served
    assert isinstance(served.engine, Engine)
    assert isinstance(served.engine._worker._runner, CheckedRunner)
    assert isinstance(served.engine._worker._runner.chosen, OpenVinoRunner)


@pytest.mark.parametrize("values", [{"precision": "int8"}, {"int8_pictures": "some/folder"}])
def test_the_precision_and_its_pictures_go_together(values):
    with pytest.raises(ValueError, match="--precision int8 and --int8-pictures FOLDER belong together"):
        Settings(**values)


def test_pictures_are_taken_from_all_over_the_folder(tmp_path):
    for n in range(10):
        (tmp_path / f"class-{n // 5}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (10 * n, 0, 0)).save(tmp_path / f"class-{n // 5}" / f"{n}.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    reds = [int(picture[0, 0, 0]) for picture in read_pictures(tmp_path, Preprocessing(8), most=4)]
    assert reds == [0, 30, 60, 90]
    assert len(read_pictures(tmp_path, Preprocessing(8))) == 10


def test_a_folder_without_pictures_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}: no pictures there; give a folder with \.bmp"):
        read_pictures(tmp_path, Preprocessing(8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png: cannot be read as a picture"):
        read_pictures(tmp_path, Preprocessing(8))


def test_all_broken_pictures_of_a_folder_are_named_at_once_and_links_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("elsewhere/a.jfif", "folder/b\udce9.png", "elsewhere/c.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"(?s)^3 pictures cannot be decoded:.*b\\xe9\.png.*a\.jfif.*c\.png"):
        read_pictures(tmp_path / "folder", Preprocessing(8))
