"""Attacks, overload, greedy clients, faults and mutants: `python -m benchmarks.hostile --data-root data`."""
