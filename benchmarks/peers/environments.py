"""The peers' environments: a virtual environment for each package, from pinned requirements, made once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.server import ROOT
from benchmarks.peers.catalogue import Peer

STAMP = "installed.txt"
LAST_WORDS = 1500
# The requirements are pinned for these.
INTERPRETERS = ("python3.11", "python3.12")
IS_SHARED = "import sysconfig; raise SystemExit(not sysconfig.get_config_var('Py_ENABLE_SHARED'))"


def requirements(peer: Peer) -> Path:
    """The file of pinned versions."""
    return Path(__file__).parent / "requirements" / f"{peer.package}.txt"


def pinned_version(peer: Peer) -> str:
    """Version of the peer's package. Raises BenchmarkError where it is not pinned."""
    match = re.search(rf"^{re.escape(peer.package)}==(\S+)$", requirements(peer).read_text(), re.MULTILINE)
    if match is None:
        raise BenchmarkError(f"{requirements(peer)} does not pin {peer.package}: add a line {peer.package}==VERSION")
    return match[1]


def prepare(peer: Peer, root: Path) -> Path:
    """Make the environment in `root`, unless its requirements are installed already. Returns its folder of commands.

    Raises BenchmarkError with the last output of the command that failed.
    """
    folder, wanted = root / peer.package, requirements(peer).read_text()
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        python = _shared_python() if peer.needs_shared_python else sys.executable
        _run([python, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(requirements(peer))])
        # The peers import offramp.models.preprocess. The requirements have what it needs.
        _run([*pip, "--no-deps", "--editable", str(ROOT)])
        stamp.write_text(wanted)
    return folder / "bin"


def _shared_python() -> str:
    candidates = [f"{folder}/{name}" for folder in ("/usr/bin", "/usr/local/bin") for name in INTERPRETERS]
    for python in [*candidates, *filter(None, map(shutil.which, INTERPRETERS))]:
        if Path(python).exists() and subprocess.run([python, "-c", IS_SHARED], check=False).returncode == 0:
            return python
    raise BenchmarkError(
        f"no {' or '.join(INTERPRETERS)} here was built with a shared library, which Triton's Python backend "
        "loads: install the system's Python, such as apt install python3-dev python3-venv"
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command[1:])} failed: {(done.stderr or done.stdout).strip()[-LAST_WORDS:]}")
