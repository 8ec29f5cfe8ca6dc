"""From bundle folders to running models."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from models.backbones.plugins import load_backbones
from models.bundle import EMBEDDED, Bundle, load_bundle
from models.device import choose_device
from server.engine.brownout import Brownout, BrownoutLimits
from server.engine.engine import Engine
from server.engine.keeper import AuditPlan, Keeper
from server.engine.profile import CostProfile, measure_profile
from server.engine.runners.choice import choose_runner
from server.engine.runners.failures import as_sentence
from server.metrics import Metrics
from server.picture_files import read_pictures
from server.registry import Registry, ServedModel
from server.settings import Settings

logger = logging.getLogger(__name__)

# A load is over when the predicted wait is so many times shorter than the one that counts as load.
RECOVERED = 4.0


def load_registry(settings: Settings, metrics: Metrics) -> Registry:
    """Load networks of one's own and every bundle, and put each bundle before an engine, not yet started.

    Raises ValueError (BundleError among them) that names the module, bundle, device or picture and what is wrong.
    """
    load_backbones(settings.backbones)
    device = choose_device(settings.device)
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
    elif settings.brownout_to and bundle.certificate and bundle.certificate.point(settings.brownout_to) is None:
        logger.warning("%s certifies nothing for brownout_to %g, which does nothing", bundle.name, settings.brownout_to)
    return bundle


def _load(path: Path, device: torch.device, settings: Settings, metrics: Metrics) -> ServedModel:
    bundle = load_served(path, settings)
    cost = bundle.cost
    # As many as are in flight, and those that are audited behind them: less than two batches in front of a stage.
    most_held = settings.max_queue + 2 * settings.max_batch_size * bundle.net.num_exits
    runner = choose_runner(
        bundle,
        device,
        settings.runner,
        settings.precision,
        settings.threads,
        max_samples=most_held,
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
        keeper=keeper_of(bundle, settings),
    )
    return ServedModel(bundle, cost, str(device), engine, warm_up)


def keeper_of(bundle: Bundle, settings: Settings) -> Keeper:
    """Audits and brownout of a bundle, as the settings want them."""
    plan = AuditPlan(settings.audit_share, settings.audit_on_alarm, settings.audit_false_alarm_every)
    brownout = None
    if settings.brownout_wait_s and bundle.certificate:
        limits = BrownoutLimits(settings.brownout_wait_s, settings.brownout_wait_s / RECOVERED)
        brownout = Brownout(limits, len(bundle.certificate.points))
    return Keeper(bundle.net.num_exits, plan, brownout)
