"""What runs inside the peers: the same pixels and the same network as in Offramp, without torch."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.peers.export import export
from benchmarks.peers.network import (
    ALWAYS_CONFIDENT,
    NEVER_CONFIDENT,
    WHOLE,
    Description,
    Exits,
    Network,
    PeerSettings,
    Setup,
    draw_exit,
)
from benchmarks.peers.network import stage_file as stage_name
from offramp.models.bundle import Bundle
from offramp.models.exit_policy import Calibration
from offramp.models.preprocess import Preprocessing, normalize
from tests.bundles import tiny_bundle
from tests.project import PROJECT

# The second exit takes nothing from the first: its stage takes features alone.
ENSEMBLE_WEIGHTS = (0.0, 0.0, 1.2)


def bundle() -> Bundle:
    return tiny_bundle(exits=(1, 2, 4), calibration=Calibration((1.5, 0.7, 0.2), ENSEMBLE_WEIGHTS))


@torch.no_grad()
def probabilities(given: Bundle, pictures_BHWC: np.ndarray) -> list[np.ndarray]:
    """Of every exit, as the reference computes them."""
    x, accumulated_BC, probabilities = normalize(torch.from_numpy(pictures_BHWC), given.preprocessing), None, []
    for stage in range(1, given.net.num_exits + 1):
        x, logits_BC = given.net.run_stage(stage, x)
        accumulated_BC = given.calibration.accumulate(stage, accumulated_BC, logits_BC)
        probabilities.append(given.calibration.probabilities(stage, accumulated_BC).numpy())
    return probabilities


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    export(bundle(), folder)
    return folder


def random_pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 5])
def test_the_exported_network_and_its_stages_give_the_reference_probabilities(exported: Path, count: int) -> None:
    core, pictures_BHWC = openvino.Core(), random_pictures(count)
    expected = probabilities(bundle(), pictures_BHWC)

    def run(name: str, *inputs: np.ndarray) -> list[np.ndarray]:
        compiled = core.compile_model(str(exported / name), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return list(compiled(list(inputs)).values())

    np.testing.assert_allclose(run(WHOLE, pictures_BHWC)[0], expected[-1], atol=1e-5)
    inputs: tuple[np.ndarray, ...] = (pictures_BHWC,)
    for stage, expected_BC in enumerate(expected, start=1):
        stage_BC, *state = run(stage_name(stage), *inputs)
        np.testing.assert_allclose(stage_BC, expected_BC, atol=1e-5)
        if stage < len(expected):
            accumulated_BC, features_BHWC = state
            inputs = (features_BHWC, accumulated_BC) if ENSEMBLE_WEIGHTS[stage] else (features_BHWC,)


def test_a_peer_answers_an_encoded_picture_as_the_reference_does(exported: Path) -> None:
    network, pictures_BHWC = Network(Setup(exported, PeerSettings(threads=1))), random_pictures(4)
    expected_BC = probabilities(bundle(), pictures_BHWC)[-1]
    given = np.partition(expected_BC, -2, axis=1)
    clear = np.flatnonzero(given[:, -1] - given[:, -2] > 0.05)
    assert len(clear)
    for index in clear:
        (answer,) = network.answers([pictures_BHWC[index]])
        assert answer["class_id"] == expected_BC[index].argmax()
        assert answer["label"] == bundle().labels[answer["class_id"]]
        assert answer["confidence"] == pytest.approx(expected_BC[index].max(), abs=0.03)
        assert answer["exit"] == 3


def encoded(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "png", exif=exif)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.sampled_from([8, 32, 33]),
    crop=st.sampled_from([1.0, 0.875, 0.5]),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    orientation=st.sampled_from([1, 3, 6]),
)
def test_peers_see_the_very_pixels_that_offramp_sees(
    width: int, height: int, size: int, crop: float, mode: str, orientation: int
) -> None:
    noise = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    data = encoded(image.convert("RGB") if mode == "CMYK" else image, orientation)
    pixels = Description("", size, crop, (), 1).picture(data)
    np.testing.assert_array_equal(pixels, Preprocessing(size, crop).apply(Image.open(io.BytesIO(data))))


def test_a_picture_of_the_networks_own_size_is_cropped_and_resized_as_by_offramp() -> None:
    data = encoded(Image.fromarray(random_pictures(1)[0]))
    pixels = Description("", 32, 0.875, (), 1).picture(data)
    np.testing.assert_array_equal(pixels, Preprocessing(32, 0.875).apply(Image.open(io.BytesIO(data))))


def test_peers_need_no_torch() -> None:
    code = "import sys, benchmarks.peers.network; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_setup_reaches_a_peer_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PeerSettings(workers=2, hint="THROUGHPUT", threads=1, max_batch_size=7, max_wait_ms=0.5, fast_queue=True)
    setup = Setup(Path("network"), settings, Exits(0.7, (0.5, 0.5)))
    for name, value in setup.variables().items():
        monkeypatch.setenv(name, value)
    assert Setup.from_environment() == setup


def test_a_threshold_holds_at_every_exit_but_the_last_where_all_leave() -> None:
    assert Exits(0.7).limits(0, 3) == (0.7, 0.7, ALWAYS_CONFIDENT)
    assert Exits(1.0).limits(0, 3) == (NEVER_CONFIDENT, NEVER_CONFIDENT, ALWAYS_CONFIDENT)


def test_a_mix_sends_its_shares_to_their_exits_whatever_the_confidence() -> None:
    mix = (0.5, 0.0, 0.3, 0.2)
    drawn = Counter(draw_exit(number, mix) for number in range(4000))
    assert {exit: round(count / 4000, 1) for exit, count in drawn.items()} == {1: 0.5, 3: 0.3, 4: 0.2}
    for number in range(20):
        limits = Exits(0.7, mix).limits(number, 4)
        assert [limit == ALWAYS_CONFIDENT for limit in limits].index(True) + 1 == draw_exit(number, mix)
        assert set(limits) <= {ALWAYS_CONFIDENT, NEVER_CONFIDENT}
