"""What the parts of a benchmark share: options, pictures, request files, servers, and the result file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from benchmarks.harness.provenance import provenance
from benchmarks.harness.requests import Request, write_requests
from benchmarks.harness.results import say, write_part
from benchmarks.harness.server import Server, offramp_server
from benchmarks.options import parse_names

Options = TypeVar("Options", bound=Any)
StartServer = Callable[..., AbstractContextManager[Server]]


@dataclass(frozen=True, kw_only=True)
class Setup(Generic[Options]):
    """png: test pictures as files. folder: for requests. start: starts a server, by model and flags."""

    options: Options
    png: Sequence[bytes] = field(repr=False)
    folder: Path
    start: StartServer = offramp_server

    def serve(self, *flags: str, model: Path | None = None) -> AbstractContextManager[Server]:
        """A server with these flags: ready inside, stopped after. model: another bundle."""
        return self.start(model or self.options.model, *flags)

    def write(self, name: str, requests: Iterable[Request | bytes]) -> Path:
        """The folder of this name, with these requests; they are written once."""
        return write_requests(requests, self.folder / name)

    @property
    def head(self) -> dict[str, Any]:
        """Facts that each part's document begins with."""
        return {}

    def publish(self, benchmark: str, parts: Collection[str]) -> None:
        """Measure the parts that `options.only` names: each is a module with `measure(setup)` and `section(document)`.

        Each is written at once: a failure of the next does not lose it.
        """
        output = self.options.output
        for name in parse_names("only", self.options.only, parts):
            module = import_module(f"benchmarks.serving.{benchmark}.{name.replace('-', '_')}")
            head = {**provenance(benchmark, self.options), "benchmark": f"{benchmark}-{name}", **self.head}
            write_part(output, benchmark, parts, name, {**head, **module.measure(self)})
            say(f"{name}: written to {output}")
