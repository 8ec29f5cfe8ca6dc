"""Requests to each peer, their answers, and the pinned environments."""

import base64
import json
import re
from pathlib import Path

import pytest

from benchmarks.peers.catalogue import PEERS, Launch, Peer, PeerAnswer, find_peers, offramp
from benchmarks.peers.environments import STAMP, pinned_version, prepare, requirements
from benchmarks.peers.network import PeerSettings

PICTURE = b"\x89PNG\r\n\x1a\n\xff--"
ANSWER = {"label": "owl", "class_id": 2, "confidence": 0.75, "exit": 3}
EXPECTED = PeerAnswer(2, "owl", 3, 0.75)
TEXT = json.dumps(ANSWER)

ANSWERS = {
    "fastapi": TEXT,
    "litserve": TEXT,
    "litserve-continuous": TEXT + "\n",
    "bentoml": f"[{TEXT}]",
    "mlserver": json.dumps({"outputs": [{"name": "answers", "datatype": "BYTES", "data": [TEXT]}]}),
    "ray-serve": TEXT,
    "pytriton": '{"model_name":"classifier","outputs":[{"name":"answer"}]}' + chr(len(TEXT)) + "\0\0\0" + TEXT,
    "offramp": json.dumps({"model": "m", "predictions": [{**ANSWER, "exits": 4}]}),
}
ALL = (*PEERS, offramp(None))


def launch(peer: Peer, work: Path) -> Launch:
    return Launch(Path("commands"), 8123, work, peer.variants[-1])


@pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)
def test_an_answer_is_read_as_the_server_gives_it(peer: Peer) -> None:
    assert peer.read(ANSWERS[peer.name].encode("latin-1")) == EXPECTED


@pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)
def test_the_picture_travels_whole(peer: Peer) -> None:
    ask = peer.ask(PICTURE, "image/png", "threshold=0.5")
    assert PICTURE in ask.body or base64.b64encode(PICTURE) in ask.body
    assert ask.path.endswith("?threshold=0.5") == (peer.name == "offramp")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_listens_on_its_port(peer: Peer, tmp_path: Path) -> None:
    command = peer.command(launch(peer, tmp_path))
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "8123" in [*command, *re.findall(r"\d+", written)]
    assert command[0].startswith("commands/")


def test_mlserver_batches_as_its_settings_say(tmp_path: Path) -> None:
    (mlserver,) = find_peers("mlserver")
    settings = PeerSettings(workers=2, max_batch_size=16, max_wait_ms=4.0)
    mlserver.command(Launch(Path("commands"), 8123, tmp_path, settings))
    model = json.loads((tmp_path / "model-settings.json").read_text())
    server = json.loads((tmp_path / "settings.json").read_text())
    assert (model["max_batch_size"], model["max_batch_time"]) == (16, 0.004)
    assert (server["host"], server["parallel_workers"]) == ("127.0.0.1", 1)


def test_offramp_serves_the_bundle_that_is_measured(tmp_path: Path) -> None:
    command = offramp(tmp_path / "bundle", server_threads=2).command(launch(ALL[-1], tmp_path))
    assert command[command.index("--model") + 1] == str(tmp_path / "bundle")
    assert command[command.index("--threads") + 1] == "2"
    assert "--model" not in offramp(None).command(launch(ALL[-1], tmp_path))


def test_peers_are_found_by_name_and_an_unknown_name_gets_the_choice() -> None:
    assert [peer.name for peer in find_peers("litserve,fastapi")] == ["litserve", "fastapi"]
    assert find_peers("all") == PEERS
    with pytest.raises(ValueError, match=r"torchserve: choose all, or some of fastapi, litserve"):
        find_peers("fastapi,torchserve")


def test_all_peers_run_the_same_openvino_and_decode_with_the_same_pillow() -> None:
    texts = {peer.name: requirements(peer).read_text() for peer in PEERS}
    for package in ("openvino", "pillow"):
        pinned = {name: re.findall(rf"(?m)^{package}==(\S+)$", text) for name, text in texts.items()}
        assert len({tuple(versions) for versions in pinned.values()}) == 1, pinned
        assert all(pinned.values())


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_requirement_is_pinned(peer: Peer) -> None:
    lines = requirements(peer).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.\-\[\]]+==[\w.+!]+", line)] == []
    assert pinned_version(peer)


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    (peer,) = find_peers("litserve-continuous")
    folder = tmp_path / "litserve"
    folder.mkdir()
    (folder / STAMP).write_text(requirements(peer).read_text())
    assert prepare(peer, tmp_path) == folder / "bin"
    assert [path.name for path in folder.iterdir()] == [STAMP]
