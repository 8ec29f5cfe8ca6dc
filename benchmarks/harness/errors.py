"""Errors that the user of a benchmark can fix."""


class BenchmarkError(ValueError):
    """A server that does not start or answer, or a file that cannot be used. The message says which and why."""
