"""Where figures come from: hardware, versions, date, command and options."""

from __future__ import annotations

import os
import platform
import shlex
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("offramp", "torch", "openvino", "numpy", "pillow", "fastapi", "starlette", "uvicorn", "uvloop", "httptools")
# Folders of one machine, which change no figure.
LEFT_OUT = ("data_root", "output")


def provenance(benchmark: str, options: Any) -> dict[str, Any]:
    """The first part of every result file. benchmark: the name of the command."""
    installed = {each.name.lower(): each.version for each in distributions()}
    processors = _lines("/proc/cpuinfo", "model name") or [platform.processor() or platform.machine()]
    gpus = Path("/proc/driver/nvidia/gpus").glob("*/information")
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(benchmark, options),
        "machine": {
            "cpu": processors[0],
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": [model for path in sorted(gpus) for model in _lines(path, "Model")],
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: installed[name] for name in PACKAGES if name in installed},
        },
        "options": {
            field.name: _without_folder(getattr(options, field.name))
            for field in fields(options)
            if field.name not in LEFT_OUT
        },
    }


def command(benchmark: str, options: Any) -> str:
    """The command line with all options that are not the default, without paths of this machine."""
    words = ["offramp", "paper"] if benchmark == "paper" else ["offramp", "bench", benchmark]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in LEFT_OUT or value == field.default:
            continue
        flag = [] if field.default is MISSING else [f"--{field.name.replace('_', '-')}"]
        words += [*flag, _without_folder(value)]
    return shlex.join(words)


def _without_folder(value: Any) -> str:
    """The value as text. A path outside the project becomes its last name."""
    path = Path(str(value))
    return path.name if path.is_absolute() or ".." in path.parts else str(value)


def _lines(path: str | Path, name: str) -> list[str]:
    """What follows the colon in lines of that name, in a file of the kernel that may be missing."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]
