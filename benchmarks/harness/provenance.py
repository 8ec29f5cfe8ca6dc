"""Where figures come from: hardware, versions, date, command and options."""

from __future__ import annotations

import os
import platform
import shlex
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("offramp", "torch", "openvino", "numpy", "pillow", "fastapi", "starlette", "uvicorn", "uvloop", "httptools")
# Folders of one machine, which change no figure.
LEFT_OUT = ("data_root", "output")


def provenance(benchmark: str, options: Any) -> dict[str, Any]:
    """The first part of every result file. benchmark: the name of the command."""
    values = {field.name: _shown(getattr(options, field.name)) for field in fields(options)}
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(benchmark, options),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": gpu_models(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **package_versions()},
        "options": {name: value for name, value in values.items() if name not in LEFT_OUT},
    }


def command(benchmark: str, options: Any) -> str:
    """The command line with all options that are not the default, without paths of this machine."""
    words = ["offramp", *(["paper"] if benchmark == "paper" else ["bench", benchmark.partition(".")[0]])]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in LEFT_OUT or value == field.default:
            continue
        flag = [] if field.default is MISSING else [f"--{field.name.replace('_', '-')}"]
        words += [*flag, _shown(value)]
    return shlex.join(words)


def _shown(value: Any) -> str:
    """The value as text. A path outside the project becomes its last name."""
    path = Path(str(value))
    leaves = path.is_absolute() or ".." in path.parts
    return path.name if leaves else str(value)


def package_versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def cpu_model() -> str:
    """The processor's name as the kernel gives it, else as Python does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu_models() -> list[str]:
    """Names of the NVIDIA GPUs, without torch."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
