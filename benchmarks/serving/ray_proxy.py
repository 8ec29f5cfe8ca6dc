"""What Ray Serve's ways to a replica cost, against one Offramp server on the same machine.

One replica, closed loops at threshold 1, in alternation: requests of one picture, and forms of several.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.harness.closed_loop import LoopFigures, closed_loop
from benchmarks.harness.figures import Document, field_ratios, spread, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.pictures import read_test_pictures
from benchmarks.harness.provenance import provenance
from benchmarks.harness.requests import form, predictions, write_requests
from benchmarks.harness.results import publish, say
from benchmarks.harness.server import Server, free_port, patient_server, start_server
from benchmarks.options import RayProxyOptions

QUERY = "threshold=1"

# By way: the variables that turn it on. Direct: clients reach the replica's own port.
WAYS: dict[str, dict[str, str]] = {
    "ray's proxy": {},
    "ray's HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
    "ray, direct": {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},
}

START = """
import sys, ray
from ray import serve
from offramp.server.ray_app import app

ray.init(include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False})
arguments = {"cpus": sys.argv[2], "max_wait_s": "60"}
serve.run(app(arguments | ({"model": sys.argv[3]} if sys.argv[3] else {})), blocking=True)
"""


@dataclass(frozen=True)
class RayRound(LoopFigures):
    """One way in one round. pictures: of a request."""

    way: str
    round: int
    pictures: int


def run(options: RayProxyOptions) -> None:
    """Measure what Ray's ways to a replica cost and write the result file."""
    head = {**provenance("ray-proxy", options), "ray": version("ray")}
    png = read_test_pictures(options.dataset, options.data_root, options.pictures).png
    groups = [png[at : at + options.form] for at in range(0, len(png), options.form)]
    forms = (form(f"/v1/predict?{QUERY}", [("image", file) for file in group], "image/png") for group in groups)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folders = {
            1: write_requests(predictions(png, QUERY), Path(name, "single")),
            options.form: write_requests(forms, Path(name, "forms")),
        }
        for number, way in product(range(options.rounds), ("offramp", *WAYS)):
            with serve(way, options.model) as server:
                for pictures, folder in folders.items():
                    connections = max(1, options.connections // pictures)
                    loop = closed_loop(server, folder, connections, options.seconds)
                    rows.append(RayRound(**vars(loop), way=way, round=number, pictures=pictures))
                    say(rows[-1])
    publish(options.output, {**head, "summary": summarize(rows), "rows": rows}, section, ("rows",))


def summarize(rows: Sequence[RayRound]) -> list[dict[str, Any]]:
    """For each way and size of request: spreads over the rounds, and ratios to Offramp's own server within each."""
    summary = []
    for way, pictures in dict.fromkeys((row.way, row.pictures) for row in rows):
        some, own = ([row for row in rows if (row.way, row.pictures) == (name, pictures)] for name in (way, "offramp"))
        summary.append(
            {
                "way": way,
                "pictures": pictures,
                "pictures_per_s": spread(row.throughput * pictures for row in some),
                "ratio": field_ratios("throughput", some, own),
                "cpu_ms": spread(row.cpu_ms / pictures for row in some),
                **spreads(some, "p50_ms", "p99_ms"),
                "errors": sum(row.errors for row in some),
            }
        )
    return summary


@contextmanager
def serve(way: str, model: Path | None) -> Iterator[Server]:
    """A server with one replica on every core, ready to be asked."""
    if way == "offramp":
        with patient_server(model) as own:
            yield own
        return
    port = proxy = free_port()
    variables = {"RAY_USAGE_STATS_ENABLED": "0", **WAYS[way]}
    if way == "ray, direct":
        variables["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(port)
        variables["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(port + 20)
        proxy = free_port()
    command = [sys.executable, "-c", START, str(proxy), str(os.cpu_count()), str(model.resolve()) if model else ""]
    with start_server(command, port, variables) as server:
        yield server


def section(document: Document) -> str:
    """The table of the result file."""
    columns = {
        "way": "{way}",
        "pictures a request": "{pictures}",
        "pictures/s": "{pictures_per_s:.0f}",
        "of Offramp's own": "{ratio:.2f×}",
        "CPU, ms": "{cpu_ms:.2f}",
        "p50, ms": "{p50_ms:.0f}",
        "p99": "{p99_ms:.0f}",
        "errors": "{errors}",
    }
    how = (
        "One replica on every core, threshold 1, closed loops of {options[connections]} connections (forms: as many "
        "pictures in flight). Median (least–most) of {options[rounds]} rounds of {options[seconds]} s. CPU: of the "
        "server's and Ray's processes, for one picture. Ray {ray}."
    )
    return section_of(document, table(columns, document["summary"]), how)
