"""What is claimed in docs/trust.md, measured: `python -m benchmarks.trust --data-root data`."""
