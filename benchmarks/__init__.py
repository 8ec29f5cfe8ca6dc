"""Measurements of a server over HTTP, from outside; every figure in the docs comes from a file written here."""
