"""Attacks, overload, greedy clients, faults and mutated requests: `offramp bench hostile`."""
