"""What can go wrong with a measurement that its user can mend."""


class BenchmarkError(ValueError):
    """A server that does not start or answer, or a result file that cannot be read; the message says which and why."""
