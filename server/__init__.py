"""Serving: pictures in over HTTP, the answer of the first confident exit out."""
