"""Runners: one step on a device, behind one small protocol."""

import sys

# OpenVINO would report every start to its maker, unless a file in the home directory forbids it, and fail where there
# is no home directory. Without this module it does neither.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
