"""Milliseconds by stage: measured, or as a server measured them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from offramp.models.config import ModelConfig
from offramp.models.multi_exit import MultiExitNet
from offramp.training.certify.stage_costs import StageCosts, measure_stage_costs, read_stage_costs

PROFILE = {"max_batch_size": 4, "batch_sizes": [1, 4], "measured_s": [[0.002, 0.004], [0.001, 0.008]]}


def test_every_stage_and_head_is_timed_for_a_picture() -> None:
    net = MultiExitNet(ModelConfig("resnet18", 3, width=4, input_size=16))
    costs = measure_stage_costs(net, torch.device("cpu"), batch_size=2)
    assert costs.batch_size == 2
    assert len(costs.stages_ms) == len(costs.heads_ms) == 4
    assert min(*costs.stages_ms, *costs.heads_ms) > 0.0
    assert "torch" in costs.source


def test_answering_at_an_exit_pays_all_heads_on_the_way_but_none_that_went() -> None:
    costs = StageCosts(8, (1.0, 2.0, 4.0), (0.5, 0.25, 0.125), "here")
    assert costs.sequential_ms == (1.5, 3.75, 7.875)
    fewer = costs.with_exits((2, 3))
    assert fewer is not None
    assert fewer.stages_ms == (3.0, 4.0)
    assert fewer.sequential_ms == (3.25, 7.375)
    assert costs.with_exits((1, 2, 3)) is costs


def test_a_servers_profile_is_read(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    costs = read_stage_costs(tmp_path / "profile.json", num_exits=2, batch_size=4)
    assert costs.stages_ms == (1.0, 2.0)
    assert costs.sequential_ms == (1.0, 3.0)
    assert costs.with_exits((2,)) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"measured_s": [[0.1, 0.2]]}, "1 rows of costs, the network has 2 stages"),
        ({"batch_sizes": [1, 2]}, "batch size 4 is not among its"),
        ({"measured_s": [[0.1, 0.2], [0.1, -1]]}, "finite times above 0"),
        ({"measured_s": "fast"}, "no table of step costs"),
    ],
)
def test_what_is_no_profile_of_this_network_is_refused(tmp_path: Path, changed: dict, said: str) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE | changed))
    with pytest.raises(ValueError, match=said):
        read_stage_costs(tmp_path / "profile.json", num_exits=2, batch_size=4)
