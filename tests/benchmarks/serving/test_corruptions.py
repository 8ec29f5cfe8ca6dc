"""Corruptions: published severities, and the same draws for the same place in a stream."""

import numpy as np
import pytest

from benchmarks.serving.trust.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture(scope="module")
def pictures_NHWC() -> np.ndarray:
    """Slopes with some texture."""
    slope_W = np.linspace(40, 200, 32)
    picture_HWC = np.stack([np.add.outer(slope_W, k * slope_W) / (1 + k) for k in (0.2, 0.5, 1.0)], axis=-1)
    texture_NHWC = np.random.default_rng(0).uniform(-30, 30, (2, 32, 32, 3))
    return (np.stack([picture_HWC, picture_HWC[::-1]]) + texture_NHWC).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_pictures_keep_their_form_and_suffer_more_with_severity(kind: str, pictures_NHWC: np.ndarray) -> None:
    suffered = []
    for severity in SEVERITIES:
        worse_NHWC = corrupt(pictures_NHWC, kind, severity)
        assert worse_NHWC.shape == pictures_NHWC.shape
        assert worse_NHWC.dtype == np.uint8
        suffered.append(float(np.abs(worse_NHWC.astype(float) - pictures_NHWC).mean()))
    assert suffered == sorted(suffered)
    assert suffered[0] > 0.0


def test_noise_has_the_published_deviation() -> None:
    grey = np.full((4, 32, 32, 3), 128, np.uint8)
    for severity, deviation in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        assert corrupt(grey, "gaussian noise", severity).std() / 255 == pytest.approx(deviation, rel=0.05)


def test_contrast_leaves_the_published_share_of_the_distance_to_the_mean(pictures_NHWC: np.ndarray) -> None:
    assert corrupt(pictures_NHWC, "contrast", 5).std(axis=(1, 2)) == pytest.approx(
        0.15 * pictures_NHWC.std(axis=(1, 2)), rel=0.05
    )


def test_a_picture_is_corrupted_by_its_number_in_the_stream_alone(pictures_NHWC: np.ndarray) -> None:
    both = corrupt(pictures_NHWC, "gaussian noise", 1, first=7)
    assert np.array_equal(both[1:], corrupt(pictures_NHWC[1:], "gaussian noise", 1, first=8))
    again = corrupt(pictures_NHWC[:1].repeat(2, axis=0), "gaussian noise", 1)
    assert not np.array_equal(again[0], again[1])


@pytest.mark.parametrize(("kind", "severity"), [("fog", 1), ("contrast", 0), ("contrast", 6)])
def test_what_is_not_known_is_refused(kind: str, severity: int, pictures_NHWC: np.ndarray) -> None:
    with pytest.raises(ValueError, match="choose one of"):
        corrupt(pictures_NHWC, kind, severity)
