"""Benchmarks of training: the paper's comparison, and the data pipeline."""
