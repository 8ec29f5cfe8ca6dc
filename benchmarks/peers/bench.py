"""Ours beside other servers: the same weights, pictures and machine, by turns.

For each workload (a model and a set of pictures) every peer is set up in several ways and the fastest kept; each server
answers every picture once, for the record of accuracy; then pairs of ours and a peer are measured by turns, A B, B A,
each started anew and alone on the machine: closed loops for capacity, then open loops at a share of the peer's
capacity for latency. Ratios are taken within a round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer

from benchmarks.errors import BenchmarkError
from benchmarks.machine import provenance
from benchmarks.peers.catalogue import Peer, Told, find_peers, offramp
from benchmarks.peers.contest import Arena, Cell, Contender, Load
from benchmarks.peers.environments import pinned_version, prepare
from benchmarks.peers.export import export
from benchmarks.peers.network import Settings
from benchmarks.peers.options import PeersOptions
from benchmarks.peers.report import plot, section
from benchmarks.peers.rows import quality, row
from benchmarks.peers.workloads import Workload, workloads
from benchmarks.stats import spread
from benchmarks.wrk import wrk_path


@dataclass
class Contest:
    """One workload's measurements, and which peers are still in it. say: hears of progress."""

    arena: Arena
    ours: Contender
    options: PeersOptions
    say: Callable[[str], None]
    rivals: dict[str, Contender] = field(default_factory=dict)
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    told: dict[str, Mapping[str, tuple[Told, ...]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)

    def enter(self, peer: Peer, bin: Path) -> None:
        """Find the peer's best settings and record its answers; one that fails is out, and its words are kept."""
        first_with_exits = next((way for way in self.ours.ways if not way.is_off), self.ours.ways[0])
        ways = (first_with_exits if peer.has_exits else self.ours.ways[0],)
        try:
            best = self._tuned([Contender(peer, bin, settings, ways) for settings in peer.variants])
            self.told[peer.name] = self.arena.check(best)
            self.rivals[peer.name] = best
        except BenchmarkError as error:
            self._out(peer.name, str(error))

    def measure(self, rates: Mapping[str, float] | None = None) -> None:
        """All rounds of all pairs: closed loops, or open ones at each peer's rate."""
        for round in range(self.options.rounds):
            for name, rival in list(self.rivals.items()):
                rate = rates[name] if rates else None
                pair = (self.ours, rival) if round % 2 == 0 else (rival, self.ours)
                cells: list[Cell] = []
                for each in pair:
                    try:
                        cells += self.arena.measure(each, round, name, rate)
                    except BenchmarkError as error:
                        self._out(name, f"{each.peer.title}, in round {round + 1}: {error}")
                        break
                self.cells += cells
                for cell in cells:
                    self.say(describe(cell))

    def rates(self) -> dict[str, float]:
        """What each pair's open loop sends a second."""
        capacity: dict[str, list[float]] = {}
        for cell in self.cells:
            if cell.server == cell.against and cell.rate is None:
                capacity.setdefault(cell.server, []).append(cell.throughput)
        return {name: self.options.load * spread(values).median for name, values in capacity.items()}

    def _tuned(self, variants: Sequence[Contender]) -> Contender:
        name, seconds = variants[0].peer.name, self.options.tune_seconds
        if not seconds or len(variants) == 1:
            return variants[0]
        found: list[tuple[float, Contender]] = []
        errors: list[BenchmarkError] = []
        for variant in variants:
            try:
                found.append((self.arena.capacity(variant, seconds), variant))
            except BenchmarkError as error:
                errors.append(error)
                continue
            throughput = found[-1][0]
            self.tried.setdefault(name, []).append({"settings": asdict(variant.settings), "throughput": throughput})
            self.say(f"{name}, tried: {throughput:.0f} pictures/s with {variant.settings.words()}")
        if not found:
            raise errors[0]
        return max(found, key=lambda pair: pair[0])[1]

    def _out(self, name: str, words: str) -> None:
        self.rivals.pop(name, None)
        self.failed[name] = words
        self.say(f"{name} is out: {words}")


def run(options: PeersOptions) -> int:
    """Measure ours beside each peer, print the tables, write JSON, Markdown and a plot after each workload."""
    wrk_path()
    head, peers = provenance(), find_peers(options.peers)
    bins, failed = prepared(peers, options.environments)
    versions = {peer.name: f"{peer.package} {pinned_version(peer)}" for peer in peers}
    parts: list[dict[str, Any]] = []
    document = {"benchmark": "peers", **head, "peer_versions": versions, **settings_of(options), "workloads": parts}
    for workload in workloads(options):
        parts.append(measured(options, workload, peers, bins, failed))
        write(document, options.output)
    typer.echo(f"\n{section(document)}\n\nwritten to {options.output}, with .md and .png beside it")
    typer.echo(json.dumps({"peers": len(peers), "failed": {part["name"]: part["failed"] for part in parts}}))
    return 0


def write(document: Mapping[str, Any], path: Path) -> None:
    """JSON at `path`, the tables and the plot beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    path.with_suffix(".md").write_text(section(document) + "\n")
    plot(document, path.with_suffix(".png"))


def prepared(peers: Sequence[Peer], environments: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Each peer's commands; and of those whose environment cannot be made, why."""
    bins, failed = {}, {}
    for peer in peers:
        _say(f"{peer.name}: environment")
        try:
            bins[peer.name] = prepare(peer, environments.absolute())
        except BenchmarkError as error:
            failed[peer.name] = str(error)
            _say(f"{peer.name} is out: {error}")
    return bins, failed


def measured(
    options: PeersOptions,
    workload: Workload,
    peers: Sequence[Peer],
    bins: Mapping[str, Path],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """One workload, as its part of the document."""
    _say(f"== {workload.name}")
    with TemporaryDirectory() as network, TemporaryDirectory() as work:
        export(workload.bundle, Path(network))
        load = Load(options.connections, options.warmup_seconds, options.seconds)
        ours = offramp(workload.model, options.server_threads)
        contender = Contender(ours, Path(sys.executable).parent, Settings(), workload.ways)
        contest = Contest(Arena(workload, Path(network), Path(work), load), contender, options, _say)
        contest.failed.update(failed)
        contest.told[ours.name] = contest.arena.check(contender)
        for peer in peers:
            if peer.name in bins:
                contest.enter(peer, bins[peer.name])
        contest.measure()
        contest.measure(contest.rates())
        return part(contest)


def part(contest: Contest) -> dict[str, Any]:
    """What was measured of one workload, as JSON."""
    workload, sent = contest.arena.workload, contest.arena.workload.pictures
    full_depth = contest.told[contest.ours.peer.name][workload.ways[0].name]
    return {
        "name": workload.name,
        "model": f"{workload.bundle.name} {workload.bundle.version}",
        "input_size": workload.bundle.preprocessing.size,
        "pictures": len(sent.pictures),
        "labelled": bool(sent.labels),
        "ways": [{"name": way.name, **asdict(way.exits)} for way in workload.ways],
        "answers": {
            server: {way: asdict(quality(told, sent.labels, full_depth)) for way, told in by_way.items()}
            for server, by_way in contest.told.items()
        },
        "rows": [
            row(rival.peer.title, asdict(rival.settings), [cell for cell in contest.cells if cell.against == name])
            for name, rival in contest.rivals.items()
        ],
        "failed": contest.failed,
        "tried": contest.tried,
        "cells": [asdict(cell) for cell in contest.cells],
    }


def settings_of(options: PeersOptions) -> dict[str, Any]:
    """What a reader must know of how it was measured."""
    names = ("connections", "rounds", "seconds", "warmup_seconds", "tune_seconds", "load")
    return {name: getattr(options, name) for name in names}


def describe(cell: Cell) -> str:
    """One line of progress."""
    kind = "closed loop" if cell.rate is None else f"open loop {cell.rate:.0f}/s"
    return (
        f"round {cell.round + 1}, {kind}, {cell.server}, {cell.way} (against {cell.against}): {cell.throughput:.0f} "
        f"pictures/s, p50 {cell.p50_ms:.1f} ms, p99 {cell.p99_ms:.1f} ms, {cell.errors} errors, "
        f"{cell.cpu_ms:.2f} ms CPU"
    )


def _say(text: str) -> None:
    typer.echo(text, err=True)
