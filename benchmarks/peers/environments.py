"""The peers' environments: a virtual environment each, from its pinned requirements, made once.

python -m benchmarks.peers.environments              # all
python -m benchmarks.peers.environments litserve     # some
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.peers.catalogue import PEERS, Peer, find_peers

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent.parent / ".peers"
STAMP = "installed.txt"
LAST_WORDS = 1500
# Those that the peers' requirements were pinned with.
INTERPRETERS = ("python3.11", "python3.12")
IS_SHARED = "import sysconfig; raise SystemExit(not sysconfig.get_config_var('Py_ENABLE_SHARED'))"


def requirements(peer: Peer) -> Path:
    """The file of pinned versions."""
    return HERE / peer.folder.replace("-", "_") / "requirements.txt"


def pinned_version(peer: Peer) -> str:
    """Of the peer's own package. Raises BenchmarkError where it is not pinned."""
    found = re.search(rf"^{re.escape(peer.package)}==(\S+)$", requirements(peer).read_text(), re.MULTILINE)
    if found is None:
        raise BenchmarkError(f"{requirements(peer)} does not pin {peer.package}: add a line {peer.package}==VERSION")
    return found[1]


def prepare(peer: Peer, root: Path = ENVIRONMENTS) -> Path:
    """Make the environment unless its requirements are installed already; gives its folder of commands.

    Raises BenchmarkError with the last words of what failed.
    """
    folder, wanted = root / peer.folder, requirements(peer).read_text()
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        python = _shared_python() if peer.needs_shared_python else sys.executable
        _run([python, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(requirements(peer))])
        stamp.write_text(wanted)
    return folder / "bin"


def _shared_python() -> str:
    candidates = [f"{folder}/{name}" for folder in ("/usr/bin", "/usr/local/bin") for name in INTERPRETERS]
    for python in [*candidates, *(found for name in INTERPRETERS if (found := shutil.which(name)))]:
        if Path(python).exists() and subprocess.run([python, "-c", IS_SHARED], check=False).returncode == 0:
            return python
    raise BenchmarkError(
        f"none of {', '.join(INTERPRETERS)} here was built with a shared library, which Triton's Python backend "
        "loads: install the system's Python, such as apt install python3-dev python3-venv"
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command[1:])} failed: {(done.stderr or done.stdout).strip()[-LAST_WORDS:]}")


def main(names: Sequence[str]) -> int:
    """Make the named environments, or all; 1 where one failed."""
    status = 0
    for peer in find_peers(",".join(names)) if names else PEERS:
        try:
            print(f"{peer.name} {pinned_version(peer)}: {prepare(peer)}")
        except BenchmarkError as error:
            print(f"{peer.name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BenchmarkError as error:
        sys.exit(str(error))
