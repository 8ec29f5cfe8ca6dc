"""Runners: one step on a device, behind one small protocol."""
