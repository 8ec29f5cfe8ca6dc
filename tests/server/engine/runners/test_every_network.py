"""Every registered network, with every kind of head, in every runner: it loads, and answers as TorchRunner does.

One network carries heads of several kinds, so that each backbone is converted once: 100 s on one core in all.
"""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import pytest
import torch
from torch import nn

from offramp.models.backbones import BACKBONES
from offramp.models.bundle import Bundle
from offramp.models.config import ModelConfig
from offramp.models.exit_policy import Calibration
from offramp.models.heads import HEADS
from offramp.models.multi_exit import MultiExitNet
from offramp.models.preprocess import Preprocessing, normalize
from offramp.server.engine.runners.agreement import example_pictures, probabilities
from offramp.server.engine.runners.choice import choose_runner
from offramp.server.engine.runners.cuda.cuda_graphs import CudaGraphRunner
from offramp.server.engine.runners.runner import Runner
from offramp.server.engine.runners.torch_runner import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CLASSES, BATCH_SIZE = 5, 4
# Each architecture can be built with one of these widths.
WIDTHS = (4, 8, 16)
# A hundred layers in another order of sums; the confidences themselves differ by some 0.1 from picture to picture.
TOLERANCE = 1e-3


def narrowest(architecture: str, size: int, head: str) -> MultiExitNet:
    for width in WIDTHS:
        try:
            return MultiExitNet(ModelConfig(architecture, CLASSES, width, size, head=head))  # type: ignore[arg-type]
        except ValueError as error:
            refused = error
    raise refused


def make_bundle(architecture: str) -> Bundle:
    """Its exits have heads of all kinds in turn, another first for each architecture; batch norms are lived in."""
    torch.manual_seed(0)
    # VGG halves its features five times.
    size = 32 if architecture.startswith("vgg") else 16
    net, *others = (narrowest(architecture, size, head) for head in HEADS)
    first = list(BACKBONES).index(architecture)
    kinds = islice(cycle([net, *others]), first, first + net.num_exits - 1)
    for exit, kind in enumerate(kinds):
        net.heads[exit] = kind.heads[exit]
    pictures_BHWC = torch.from_numpy(np.stack(example_pictures(size, BATCH_SIZE)))
    x_BCHW = normalize(pictures_BHWC, Preprocessing(size))
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = 1.0
        net.train()(x_BCHW)
        for head, logits_BC in zip(net.heads, net.eval()(x_BCHW).logits, strict=True):
            head.classifier.weight.div_(logits_BC.std())  # type: ignore[operator, union-attr]
    calibration = Calibration((1.0,) * net.num_exits, (0.0, *(0.5,) * (net.num_exits - 1)))
    labels = tuple(map(str, range(CLASSES)))
    return Bundle("tiny", "1", net.config, Preprocessing(size), labels, calibration, 0.5, net)


def cuda_graphs(bundle: Bundle) -> Runner:
    """Without a GPU: the same work, done anew each time."""
    return CudaGraphRunner(bundle, CPU, max_samples=BATCH_SIZE, precision="float32")


@pytest.mark.parametrize("architecture", BACKBONES)
def test_every_runner_answers_as_the_reference(architecture):
    bundle = make_bundle(architecture)
    pictures = example_pictures(bundle.preprocessing.size, BATCH_SIZE)
    wanted_KNC = probabilities(TorchRunner(bundle, CPU), pictures)
    assert wanted_KNC.std(axis=1).mean() > 0.02
    for runner in (cuda_graphs(bundle), choose_runner(bundle, CPU, "openvino", "float32", threads=1)):
        if isinstance(runner, CudaGraphRunner):
            runner.warm_up(BATCH_SIZE)
        # OpenVINO compiles for this one batch size alone.
        np.testing.assert_allclose(probabilities(runner, pictures), wanted_KNC, rtol=0, atol=TOLERANCE)
