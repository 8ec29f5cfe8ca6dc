"""Runners: one step on a device, behind one small protocol."""

import sys

# This module reports every start of OpenVINO to its maker, and fails without a home directory. It is not needed.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
