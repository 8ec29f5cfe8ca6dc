"""`python -m benchmarks.hostile`."""

from benchmarks.command_line import command_line
from benchmarks.hostile.options import HostileOptions
from benchmarks.hostile.parts import run

if __name__ == "__main__":
    command_line(HostileOptions, run)
