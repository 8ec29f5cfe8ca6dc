"""From bundle folders to running models."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from offramp.models.backbones.plugins import load_backbones
from offramp.models.bundle import EMBEDDED, Bundle, load_bundle
from offramp.models.device import choose_device
from offramp.server.engine.engine import Engine
from offramp.server.engine.profile import CostProfile, measure_profile
from offramp.server.engine.promises.brownout import Brownout, BrownoutLimits
from offramp.server.engine.promises.promises import AuditOptions, Promises
from offramp.server.engine.runners.choice import choose_runner
from offramp.server.engine.runners.failures import as_sentence
from offramp.server.metrics import Metrics
from offramp.server.picture_files import read_pictures
from offramp.server.registry import Registry, ServedModel
from offramp.server.settings import Settings

logger = logging.getLogger(__name__)

# The brownout recovers when the predicted wait is this many times shorter than the one that starts it.
RECOVERED = 4.0


def load_registry(settings: Settings, metrics: Metrics) -> Registry:
    """Load networks of one's own and every bundle, and put each bundle before an engine, not yet started.

    Raises ValueError (BundleError among them) that names the module, bundle, device or picture and what is wrong.
    """
    load_backbones(settings.backbones)
    device = choose_device(settings.device)
    names = ", ".join(map(str, settings.model)) if settings.model else "the embedded model"
    logger.info("loading %s on %s; ready in some seconds", names, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return Registry([_load(path, device, settings, metrics) for path in settings.model or [EMBEDDED]])


def load_served(path: Path, settings: Settings) -> Bundle:
    """A bundle as it is served. Raises BundleError.

    Without its certificate where the network computes in integers: what was proven is of another network then.
    """
    bundle = load_bundle(path)
    if settings.precision == "int8" and bundle.certificate is not None:
        logger.warning("%s certifies nothing in int8: its certificate is of the network in float32", bundle.name)
        return replace(bundle, certificate=None)
    if settings.brownout_wait_s and not (bundle.certificate and bundle.certificate.points):
        logger.warning("%s has no certified thresholds that a loaded server could go down to", bundle.name)
    elif settings.brownout_to and bundle.certificate and bundle.certificate.point_for(settings.brownout_to) is None:
        logger.warning("%s certifies nothing for brownout_to %g, which does nothing", bundle.name, settings.brownout_to)
    return bundle


def _load(path: Path, device: torch.device, settings: Settings, metrics: Metrics) -> ServedModel:
    bundle = load_served(path, settings)
    cost = bundle.cost
    # Samples in flight, and audited ones: less than two batches in front of each stage.
    max_held = settings.max_queue + 2 * settings.max_batch_size * bundle.net.num_exits
    runner = choose_runner(
        bundle,
        device,
        settings.runner,
        settings.precision,
        settings.threads,
        max_samples=max_held,
        pictures=read_pictures(settings.int8_pictures, bundle.preprocessing) if settings.int8_pictures else (),
    )

    def warm_up() -> CostProfile:
        with as_sentence(f"runner {settings.runner!r}", "give another --runner or --device"):
            runner.warm_up(settings.max_batch_size)
            return measure_profile(runner, bundle.preprocessing.size, settings.max_batch_size, time.monotonic)

    engine = Engine(
        runner,
        metrics.add_model(bundle, cost, str(device)),
        max_batch_size=settings.max_batch_size,
        max_samples=settings.max_queue,
        max_wait_s=settings.max_wait_s,
        policy=settings.policy,
        promises=promises_of(bundle, settings),
    )
    return ServedModel(bundle, cost, str(device), engine, warm_up)


def promises_of(bundle: Bundle, settings: Settings) -> Promises:
    """Audits and brownout of a bundle, by the settings."""
    options = AuditOptions(settings.audit_share, settings.audit_on_alarm, settings.audit_false_alarm_every)
    brownout = None
    if settings.brownout_wait_s and bundle.certificate:
        limits = BrownoutLimits(settings.brownout_wait_s, settings.brownout_wait_s / RECOVERED)
        brownout = Brownout(limits, len(bundle.certificate.points))
    return Promises(bundle.net.num_exits, options, brownout)
