"""Benchmarks, each a command `offramp bench NAME`. Every table in docs/ comes from one of their result files."""
