"""What a pod starts, run as a container: its user, a read-only root, its volumes, process 1."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.project import PROJECT, PYTHONPATH

# Of the machine: programs and libraries. No /etc/passwd, so that the user has no home directory.
SYSTEM = ("/usr", "/etc/ld.so.cache", "/etc/alternatives", "/sys")


@dataclass(frozen=True)
class Container:
    """The one container of a pod. command: of the image and the pod together."""

    command: list[str]
    env: dict[str, str]
    user: int
    group: int
    mounts: list[dict[str, Any]]
    read_only: bool
    grace_s: int


def container_of(pod: dict[str, Any]) -> Container:
    """Of a pod's spec, with the entry point of the Dockerfile, and the downward API's fields filled in."""
    (container,) = pod["containers"]
    (entry_point,) = re.findall(r"^ENTRYPOINT (.+)$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    cores = str(math.ceil(float(container["resources"]["requests"]["cpu"])))
    return Container(
        command=[*json.loads(entry_point), *container["args"]],
        env={entry["name"]: entry.get("value", cores) for entry in container["env"]},
        user=security["runAsUser"],
        group=security["runAsGroup"],
        mounts=container["volumeMounts"],
        read_only=security["readOnlyRootFilesystem"],
        grace_s=pod["terminationGracePeriodSeconds"],
    )


class Running:
    """A container that runs; its process 1 is the server."""

    def __init__(self, process: subprocess.Popen[str], pid: int, log: Path) -> None:
        self.process = process
        self._pid = pid
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self, grace_s: int, meanwhile: Callable[[], None]) -> int:
        """As a kubelet ends it after the preStop hook; the exit status. Raises TimeoutExpired after the grace."""
        os.kill(self._pid, signal.SIGTERM)
        meanwhile()
        return self.process.wait(grace_s)


@contextmanager
def started(bwrap: str, container: Container, volumes: Mapping[str, Path], log: Path) -> Iterator[Running]:
    """Run it in namespaces of its own, without capabilities. volumes: folders by their names; `tmp` is empty."""
    told, tells = os.pipe()
    command = [bwrap, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL", "--die-with-parent"]
    command += ["--as-pid-1", "--info-fd", str(tells), "--uid", str(container.user), "--gid", str(container.group)]
    command += ["--proc", "/proc", "--dev", "/dev", "--chdir", "/", "--clearenv"]
    for mount in container.mounts:
        source = volumes.get(mount["name"])
        command += ["--tmpfs", mount["mountPath"]] if source is None else ["--ro-bind", str(source), mount["mountPath"]]
    # After /tmp, where one of them may lie.
    for path in (*SYSTEM, sys.base_prefix, sys.prefix, str(PROJECT)):
        command += ["--ro-bind-try", path, path]
    for name in ("lib", "lib64", "bin"):
        command += ["--symlink", f"usr/{name}", f"/{name}"]
    if container.read_only:
        command += ["--remount-ro", "/"]
    path = os.pathsep.join(str(Path(prefix, "bin")) for prefix in (sys.prefix, "/usr"))
    env = {"PATH": path, "PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1", **container.env}
    for name, value in env.items():
        command += ["--setenv", name, value]
    with log.open("w") as output, os.fdopen(told) as info:
        process = subprocess.Popen(
            [*command, *container.command], stdout=output, stderr=output, text=True, pass_fds=[tells]
        )
        os.close(tells)
        with process:
            try:
                yield Running(process, json.loads(info.read())["child-pid"], log)
            finally:
                process.kill()
