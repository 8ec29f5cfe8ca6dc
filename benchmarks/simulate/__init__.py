"""Scheduling policies in a discrete-event simulator that runs the server's own scheduler."""
