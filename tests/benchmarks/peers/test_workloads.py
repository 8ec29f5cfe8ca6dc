"""Pictures that are sent, and the ways in which Offramp is asked."""

import io
import tarfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.options import PeersOptions
from benchmarks.peers.network import Exits
from benchmarks.peers.workloads import ExitSetting, larger_model, mix_ways, photos, threshold_ways
from offramp.models.bundle import load_bundle
from offramp.models.certificate import Certificate, CertifiedPoint


@dataclass(frozen=True)
class Facts:
    """The facts of a bundle from which the ways are chosen."""

    threshold: float
    operating_points: tuple[dict[str, Any], ...]
    certificate: Certificate | None = None


MIX = [0.5, 0.1, 0.1, 0.3]
BUNDLE: Any = Facts(
    0.7,
    (
        {"threshold": 0.7, "disagreement": 0.0175, "exit_mix": MIX},
        {"threshold": 0.8, "disagreement": 0.0064, "exit_mix": [0.4, 0.1, 0.1, 0.4]},
        {"threshold": 0.9, "disagreement": 0.0011, "exit_mix": [0.3, 0.1, 0.1, 0.5]},
        {"threshold": 1.0, "disagreement": 0.0, "exit_mix": [0, 0, 0, 1.0]},
    ),
)


def test_offramp_is_asked_with_exits_off_at_little_disagreement_and_at_its_own_threshold() -> None:
    ways = threshold_ways(BUNDLE, "")
    assert [(way.name, way.query(3), way.exits_off) for way in ways] == [
        ("exits off", "threshold=1", True),
        ("threshold 0.8", "threshold=0.8", False),
        ("threshold 0.7", "threshold=0.7", False),
    ]


def test_a_certified_contract_takes_the_place_of_a_threshold_of_as_little_disagreement() -> None:
    point = CertifiedPoint(0.01, (0.7, 0.8, 0.9), 0.005, 0.009, 0.0, 0.01, 0.6, (0.4, 0.1, 0.1, 0.4))
    certificate = Certificate(0.05, 3000, "some", "ab" * 32, "2026-11-26", (point,), ())
    off, certified, own = threshold_ways(replace(BUNDLE, certificate=certificate), "")
    assert off.exits_off
    assert (certified.name, certified.query(3), certified.exits_off) == ("certified 1%", "max_disagreement=0.01", False)
    # A peer that has exits, but no contracts, gets a threshold with as little disagreement.
    assert certified.exits == Exits(0.8)
    assert own.query(3) == "threshold=0.7"


def test_thresholds_can_be_chosen_and_off_comes_first() -> None:
    assert [way.exits.threshold for way in threshold_ways(BUNDLE, "0.2,1,0.5")] == [1.0, 0.5, 0.2]


def test_the_larger_network_leaves_as_the_first_one_does() -> None:
    off, at_08, at_07 = mix_ways(BUNDLE, threshold_ways(BUNDLE, ""), (), 4)
    assert off.exits_off
    assert at_08.exits.mix == (0.4, 0.1, 0.1, 0.4)
    asked = Counter(at_07.query(number) for number in range(3000))
    shares = {query: round(count / 3000, 1) for query, count in asked.items()}
    assert shares == {f"threshold=1&max_exit={exit}": share for exit, share in enumerate(MIX, start=1)}


def test_a_mix_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="has 3 exits"):
        mix_ways(BUNDLE, threshold_ways(BUNDLE, ""), (), 3)
    assert mix_ways(BUNDLE, (), (0.2, 0.3, 0.5), 3)[1] == ExitSetting(
        "exit mix 20 / 30 / 50 %", Exits(1.0, (0.2, 0.3, 0.5))
    )


def test_photographs_come_from_a_folder_or_a_tar_file_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in (("b.jpg", b"second"), ("a.jpeg", b"first"), ("notes.txt", b"no"), ("c.JPG", b"third")):
        (folder / name).write_bytes(content)
    archive = tmp_path / "photos-caltech101.tar"
    with tarfile.open(archive, "w") as tar:
        for path in folder.iterdir():
            info = tarfile.TarInfo(f"photos/{path.name}")
            info.size = len(path.read_bytes())
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    wanted = (b"first", b"second", b"third")
    assert photos(PeersOptions(photos=folder)).pictures == wanted
    assert photos(PeersOptions(data_root=tmp_path)).pictures == wanted
    assert photos(PeersOptions(photos=folder, pictures=2)).pictures == wanted[:2]
    with pytest.raises(BenchmarkError, match="--photos"):
        photos(PeersOptions(photos=tmp_path / "nowhere"))


def test_a_larger_network_is_a_bundle_or_an_architecture_that_is_built(tmp_path: Path) -> None:
    bundle = load_bundle(larger_model("mobilenetv2", tmp_path))
    assert (bundle.name, bundle.version, bundle.config.input_size) == ("mobilenetv2", "untrained", 224)
    with torch.inference_mode():
        for exit_BC in bundle.net(torch.randn(1, 3, 224, 224)).logits:
            assert exit_BC.isfinite().all()
    assert larger_model(str(tmp_path), tmp_path) == tmp_path
    with pytest.raises(BenchmarkError, match=r"resnet51.*resnet50"):
        larger_model("resnet51", tmp_path)
