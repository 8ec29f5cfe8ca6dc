"""What all benchmarks share: the server under test, closed and open loops, figures, tables and result files."""
