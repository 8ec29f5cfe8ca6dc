"""Benchmarks of the server: speed, answers, costs, trust and hostile clients."""
