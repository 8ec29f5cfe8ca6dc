"""What Ray Serve's ways to a replica cost, against one Offramp server of its own on the same machine.

    python -m benchmarks.ray_proxy --data-root data

One replica, closed loops at threshold 1, by turns: requests of one picture, and forms of several. Needs wrk and the
`ray` extra.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command_line import command_line
from benchmarks.figures import provenance, table, with_extremes
from benchmarks.load import ROOT
from benchmarks.machine import plain_options
from benchmarks.machine import provenance as machine_facts
from benchmarks.options import DataRoot, DatasetName, ModelPath
from benchmarks.peers.requests import Ask, write_requests
from benchmarks.pictures import export_test_pictures, read_pictures
from benchmarks.processes import Running, free_port, running
from benchmarks.serving import READY_TIMEOUT_S, is_ready, own_server
from benchmarks.stats import spread
from benchmarks.wrk import run_wrk

BOUNDARY = "ray-proxy"
PATH = "/v1/predict?threshold=1"

# By the variables that turn a way on. Direct: clients reach the replica's own port.
WAYS: dict[str, dict[str, str]] = {
    "ray's proxy": {},
    "ray's HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
    "ray, direct": {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},
}

START = """
import sys, ray
from ray import serve
from server.ray_app import app

ray.init(include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False})
arguments = {"cpus": sys.argv[2], "max_wait_s": "60"}
serve.run(app(arguments | ({"model": sys.argv[3]} if sys.argv[3] else {})), blocking=True)
"""


@dataclass(frozen=True)
class RayProxyOptions:
    """Options of `python -m benchmarks.ray_proxy`."""

    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")
    pictures: Annotated[int, typer.Option(min=1, help="Test pictures that are sent, over and over.")] = 256
    form: Annotated[int, typer.Option(min=2, max=64, help="Pictures of a form.")] = 16
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Clients of the closed loops.")] = 64
    rounds: Annotated[int, typer.Option(min=1, help="How often each server is started, by turns.")] = 2
    seconds: Annotated[int, typer.Option(min=1, help="Measured seconds of each closed loop.")] = 5
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("benchmarks/results/ray-proxy.json")


def run(options: RayProxyOptions) -> int:
    """Measure what Ray's ways to a replica cost and write the result file."""
    rows: list[dict[str, Any]] = []
    facts = {"benchmark": "ray-proxy", **machine_facts(), "ray": version("ray"), "options": plain_options(options)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        export_test_pictures(options.dataset, options.data_root, options.pictures, folder / "pictures")
        pictures = read_pictures(folder / "pictures")
        forms = [form(pictures[at : at + options.form]) for at in range(0, len(pictures), options.form)]
        kinds = {
            1: write_requests([Ask(PATH, "image/png", picture) for picture in pictures], folder / "one"),
            options.form: write_requests(forms, folder / "forms"),
        }
        for number in range(options.rounds):
            for way in ("offramp", *WAYS):
                with server(way, options.model) as at:
                    for count, requests in kinds.items():
                        connections = max(1, options.connections // count)
                        run_wrk(at.port, requests, connections, 1)
                        before_s = at.cpu_s()
                        figures = run_wrk(at.port, requests, connections, options.seconds)
                        cpu_s = at.cpu_s() - before_s
                        row = {"way": way, "round": number, "pictures": count, "cpu_s": cpu_s, **asdict(figures)}
                        rows.append(row)
                        typer.echo(json.dumps(row))
    document = {**facts, "summary": summed_up(rows), "rows": rows}
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    typer.echo(json.dumps({"output": str(options.output)}))
    return 0


def summed_up(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each way and size of request: spreads over the rounds, beside Offramp's own server in each."""
    summary = []
    for way, pictures in dict.fromkeys((row["way"], row["pictures"]) for row in rows):
        own = {row["round"]: row for row in rows if (row["way"], row["pictures"]) == ("offramp", pictures)}
        these = [row for row in rows if (row["way"], row["pictures"]) == (way, pictures)]
        columns = {
            "pictures_per_s": [row["throughput"] * pictures for row in these],
            "ratio": [row["throughput"] / own[row["round"]]["throughput"] for row in these],
            "cpu_ms": [1000 * row["cpu_s"] / max(1, row["requests"] * pictures) for row in these],
            "p50_ms": [row["p50_ms"] for row in these],
            "p99_ms": [row["p99_ms"] for row in these],
        }
        spreads = {name: asdict(spread(values)) for name, values in columns.items()}
        errors = sum(row["errors"] for row in these)
        summary.append({"way": way, "pictures": pictures, **spreads, "errors": errors})
    return summary


def section(document: Mapping[str, Any]) -> str:
    """The table of the result file."""
    rows = [
        [
            row["way"],
            str(row["pictures"]),
            with_extremes(row["pictures_per_s"], ".0f"),
            with_extremes(row["ratio"], ".2f", "×"),
            with_extremes(row["cpu_ms"], ".2f"),
            with_extremes(row["p50_ms"], ".0f"),
            with_extremes(row["p99_ms"], ".0f"),
            str(row["errors"]),
        ]
        for row in document["summary"]
    ]
    options = document["options"]
    how = (
        f"One replica on every core, threshold 1, closed loops of {options['connections']} connections (forms: as many "
        f"pictures in flight). Median (least–most) of {options['rounds']} rounds of {options['seconds']} s. CPU: of "
        f"the server's and Ray's processes, for one picture. Ray {document['ray']}."
    )
    head = "way | pictures a request | pictures/s | of Offramp's own | CPU, ms | p50, ms | p99 | errors"
    return f"{table(head, rows)}\n\n{how} {provenance(document)}"


def form(pictures: list[bytes]) -> Ask:
    """A form of several pictures."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
    body = b"".join(head + picture + b"\r\n" for picture in pictures) + f"--{BOUNDARY}--\r\n".encode()
    return Ask(PATH, f"multipart/form-data; boundary={BOUNDARY}", body)


@contextmanager
def server(way: str, model: Path | None) -> Iterator[Running]:
    """A server with one replica on every core, ready to be asked."""
    if way == "offramp":
        with own_server(model) as own:
            yield own
        return
    port = free_port()
    variables = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **WAYS[way]}
    if way == "ray, direct":
        variables["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(port)
        variables["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(port + 20)
    proxy = free_port() if way == "ray, direct" else port
    command = [sys.executable, "-c", START, str(proxy), str(os.cpu_count()), str(model.resolve()) if model else ""]
    with running(command, port, is_ready, variables, READY_TIMEOUT_S) as at:
        yield at


if __name__ == "__main__":
    command_line(RayProxyOptions, run)
