"""A bundle as OpenVINO files: every peer serves the same network as Offramp and needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import openvino

from benchmarks.peers.network import DESCRIPTION, WHOLE, Description, stage_file
from offramp.models.bundle import Bundle
from offramp.server.engine.runners.openvino.stages import convert_stages, convert_whole


def export(bundle: Bundle, folder: Path) -> None:
    """Write the whole network, each stage, and their description into `folder`.

    Inputs and outputs are float32; a peer's OpenVINO chooses the precision of its computation.
    """
    stages = convert_stages(bundle)
    networks = {WHOLE: convert_whole(bundle), **{stage_file(k): stage for k, stage in enumerate(stages, start=1)}}
    for name, network in networks.items():
        openvino.save_model(network, folder / name, compress_to_fp16=False)
    preprocessing = bundle.preprocessing
    description = Description(
        bundle.name, preprocessing.size, preprocessing.crop_fraction, tuple(bundle.labels), len(stages)
    )
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description)))
