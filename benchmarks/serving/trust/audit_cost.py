"""What audits cost: capacity by the share of pictures that is audited."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.harness.closed_loop import LoopFigures, closed_loop
from benchmarks.harness.figures import Document, field_ratios, interleave, spreads, table
from benchmarks.harness.figures import section as section_of
from benchmarks.harness.server import Server
from benchmarks.serving.trust.setup import TrustSetup

SHARES = (0.0, 0.01, 0.1)


def measure(setup: TrustSetup) -> dict[str, Any]:
    """Capacity under the usual promise by the audited share; the servers that are not measured are idle."""
    options, folder = setup.options, setup.requests_folder(f"max_disagreement={setup.usual}")

    def capacity(server: Server, number: int) -> LoopFigures:
        return closed_loop(server, folder, options.connections, options.seconds, may_fail=False)

    with ExitStack() as stack:
        servers = {share: stack.enter_context(setup.serve("--audit-share", str(share))) for share in SHARES}
        loops = interleave({share: partial(capacity, server) for share, server in servers.items()}, options.rounds)
    rows = [
        {"share": share, **spreads(some, "throughput", "p99_ms"), "ratio": field_ratios("throughput", some, loops[0.0])}
        for share, some in loops.items()
    ]
    head = {"promise": setup.usual, "connections": options.connections, "seconds": options.seconds}
    return {**head, "rounds_each": options.rounds, "rows": rows, "rounds": loops}


def section(document: Document) -> str:
    """The table."""
    columns = {
        "audited": "{share:.0%}",
        "pictures/s": "{throughput:.0f}",
        "against none": "{ratio:.3f×}",
        "p99, ms": "{p99_ms:.1f}",
    }
    how = (
        "Closed loops of {connections} connections, {seconds} s each, at max_disagreement {promise}; median "
        "(least–most) of {rounds_each} interleaved rounds, ratios within rounds. {served}."
    )
    return section_of(document, table(columns, document["rows"]), how)
