"""Offramp beside other servers: the same weights, pictures and machine.

A workload is a model and a set of pictures. For each workload, every peer is tried with several settings and keeps the
fastest; each server answers every picture once, for accuracy. Then Offramp and a peer alternate, A B, B A,
each started anew and alone on the machine: closed loops for capacity, then open loops at a share of the peer's capacity
for latency. Ratios are taken within a round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer

from benchmarks.harness.closed_loop import wrk_path
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import say, write
from benchmarks.options import PeersOptions
from benchmarks.peers.catalogue import Peer, find_peers, offramp
from benchmarks.peers.comparison import Candidate, Comparison, quality, summarize
from benchmarks.peers.environments import pinned_version, prepare
from benchmarks.peers.export import export
from benchmarks.peers.network import PeerSettings
from benchmarks.peers.report import peers_section, plot
from benchmarks.peers.workloads import Workload, workloads

RECORDED = ("connections", "rounds", "seconds", "warmup_seconds", "tune_seconds", "load")


def run(options: PeersOptions) -> None:
    """Measure Offramp beside each peer. Write JSON, Markdown and plot after each workload."""
    wrk_path()
    head, peers = provenance("peers", options), find_peers(options.peers)
    bins, failed = prepare_all(peers, options.environments)
    versions = {peer.name: f"{peer.package} {pinned_version(peer)}" for peer in peers}
    parts: list[dict[str, Any]] = []
    document = {
        **head,
        "peer_versions": versions,
        **{name: getattr(options, name) for name in RECORDED},
        "workloads": parts,
    }
    for workload in workloads(options):
        parts.append(measure_workload(options, workload, peers, bins, failed))
        written = write(options.output, document)
        options.output.with_suffix(".md").write_text(peers_section(written) + "\n")
        plot(written, options.output.with_suffix(".png"))
    typer.echo(f"\n{peers_section(written)}\n\nwritten to {options.output}, with .md and .png beside it")
    typer.echo(json.dumps({"peers": len(peers), "failed": {part["name"]: part["failed"] for part in parts}}))


def prepare_all(peers: Sequence[Peer], environments: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The commands of each peer, and the errors of environments that cannot be made."""
    bins, failed = {}, {}
    for peer in peers:
        say(f"{peer.name}: environment")
        try:
            bins[peer.name] = prepare(peer, environments.absolute())
        except BenchmarkError as error:
            failed[peer.name] = str(error)
            say(f"{peer.name} is left out: {error}")
    return bins, failed


def measure_workload(
    options: PeersOptions,
    workload: Workload,
    peers: Sequence[Peer],
    bins: Mapping[str, Path],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """One workload, as its part of the document."""
    say(f"== {workload.name}")
    server = offramp(workload.model, options.server_threads)
    candidate = Candidate(server, Path(sys.executable).parent, PeerSettings(), workload.ways)
    with TemporaryDirectory() as network, TemporaryDirectory() as work:
        export(workload.bundle, Path(network))
        comparison = Comparison(workload, candidate, options, Path(network), Path(work), failed=dict(failed))
        comparison.check(candidate)
        for peer in peers:
            if peer.name in bins:
                comparison.add(peer, bins[peer.name])
        comparison.measure()
        comparison.measure(comparison.rates())
        return part(comparison)


def part(comparison: Comparison) -> dict[str, Any]:
    """All measurements of one workload, as JSON."""
    workload = comparison.workload
    labels = workload.pictures.labels
    full_depth = comparison.answers[comparison.offramp.peer.name][workload.ways[0].name]
    return {
        "name": workload.name,
        "model": f"{workload.bundle.name} {workload.bundle.version}",
        "input_size": workload.bundle.preprocessing.size,
        "pictures": len(workload.pictures.pictures),
        "labelled": bool(labels),
        "ways": [{"name": way.name, **asdict(way.exits)} for way in workload.ways],
        "answers": {
            server: {way: quality(answers, labels, full_depth) for way, answers in by_way.items()}
            for server, by_way in comparison.answers.items()
        },
        "rows": [
            summarize(peer.peer.title, asdict(peer.settings), [e for e in comparison.rounds if e.against == name])
            for name, peer in comparison.peers.items()
        ],
        "failed": comparison.failed,
        "tried": comparison.tried,
        "cells": comparison.rounds,
    }
