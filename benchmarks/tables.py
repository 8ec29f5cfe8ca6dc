"""The results in the documents: tables and single figures between marks, written from the result files.

    python -m benchmarks.tables            # write them into README.md and docs/
    python -m benchmarks.tables --check    # fail where a document differs from its result files

A table stands between `<!-- results: NAME.json -->` and `<!-- end of results -->`; of a file with several parts,
`<!-- results: NAME.json#PART -->` is one; `<!-- results: targets -->` reads several files. A figure stands between
`<!-- result: NAME.json PATH FORMAT -->` and `<!-- end -->`, such as
`<!-- result: thresholds.json rows[threshold=0.8].ratio .2f× -->`. FORMAT is that of `harness.figures.Figure`.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Figure
from benchmarks.harness.server import ROOT
from benchmarks.options import HOSTILE_PARTS, RESULTS, TRUST_PARTS
from benchmarks.targets import targets_section

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLE = re.compile(
    r"(<!-- results: (?P<name>[\w.-]+)(?:#(?P<part>[\w-]+))? -->\n)(?P<body>.*?)(?P<end><!-- end of results -->)",
    re.DOTALL,
)
FIGURE = re.compile(r"(<!-- result: (?P<name>[\w.-]+) (?P<path>\S+) (?P<form>\S+) -->)[^<]*(?P<end><!-- end -->)")
STEP = re.compile(r"[\w-]+|\[[^\]]*\]")

# By the `benchmark` of a result: module and function that write its section.
SECTIONS = {
    "thresholds": ("serving.thresholds", "section"),
    "accuracy": ("serving.accuracy", "section"),
    "engine": ("serving.engine", "section"),
    "server-costs": ("serving.server_costs", "section"),
    **{f"trust-{part}": (f"serving.trust.{part.replace('-', '_')}", "section") for part in TRUST_PARTS},
    **{f"hostile-{part}": (f"serving.hostile.{part}", "section") for part in HOSTILE_PARTS},
    "ray-proxy": ("serving.ray_proxy", "section"),
    "peers": ("peers.report", "peers_section"),
    "simulate": ("simulate.report", "simulation_section"),
    "paper": ("training.paper_report", "paper_section"),
    "pipeline": ("training.pipeline", "section"),
}


def fill_document(text: str, results: Path) -> str:
    """The document with every table and figure written anew. Raises BenchmarkError for a file that is no result."""
    text = TABLE.sub(lambda mark: mark[1] + _section(results / mark["name"], mark["part"]) + "\n" + mark["end"], text)
    return FIGURE.sub(
        lambda mark: mark[1] + _figure(results, mark["name"], mark["path"], mark["form"]) + mark["end"], text
    )


def _section(path: Path, part: str | None) -> str:
    try:
        if path.name == "targets":
            return targets_section(path.parent)
        if not path.exists():
            return f"*Not measured yet: `benchmarks/results/{path.name}` is missing.*"
        document = json.loads(path.read_text())
        if part is not None and part not in document["parts"]:
            return f"*Not measured yet: `benchmarks/results/{path.name}` has no {part}.*"
        document = document["parts"][part] if part else document
        module, function = SECTIONS[document["benchmark"]]
        section: str = getattr(import_module(f"benchmarks.{module}"), function)(document)
        return section
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a result file of these benchmarks ({error!r}); measure again") from error


def _figure(results: Path, name: str, path: str, form: str) -> str:
    try:
        return format(Figure(find(json.loads((results / name).read_text()), path)), form)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BenchmarkError(f"{name} has no figure {path} of the form {form} ({error!r}): change the mark") from error


def find(document: Any, path: str) -> Any:
    """The value at a path such as `rows[threshold=0.8].ratio`, `rows[-1].errors` or `parts.audit.promise`."""
    for step in STEP.findall(path):
        if not step.startswith("["):
            document = document[step]
        elif "=" not in step:
            document = document[int(step[1:-1])]
        else:
            field, _, value = step[1:-1].partition("=")
            (document,) = (row for row in document if str(row[field]) == value)
    return document


def main(
    documents: Annotated[list[Path] | None, typer.Argument(help="Default: README.md and all of docs/.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where a figure is stale.")] = False,
    results: Annotated[Path, typer.Option(help="Folder of the result files.")] = ROOT / RESULTS,
) -> None:
    """Write the results into the documents, or check them. Exits with status 1 where one is stale."""
    stale = False
    for path in documents or DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        written = fill_document(text, results)
        if written == text:
            continue
        if check:
            print(f"{path}: a figure is stale; run python -m benchmarks.tables {path}", file=sys.stderr)
            stale = True
        else:
            path.write_text(written, encoding="utf-8")
            print(f"{path}: written")
    if stale:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
