"""`python -m benchmarks.trust`."""

from benchmarks.command_line import command_line
from benchmarks.trust.options import TrustOptions
from benchmarks.trust.parts import run

if __name__ == "__main__":
    command_line(TrustOptions, run)
