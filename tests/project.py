"""Where the project lies, and how its programs find its packages."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# For a process of its own: the packages of this checkout, whichever is installed, and `benchmarks` and `tests`.
PYTHONPATH = os.pathsep.join([str(PROJECT / "build/tree"), str(PROJECT)])
