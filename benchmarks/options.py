"""The options of all benchmarks, declared once: flag, environment variable and help come from here.

A field `server_threads` becomes `--server-threads` and `OFFRAMP_SERVER_THREADS`; the docstring of a class is its help.
A class raises ValueError for lists that cannot be read. The module imports neither torch nor an HTTP library, so that
`--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

RESULTS = Path("benchmarks/results")

Url = Annotated[
    str | None, Option(help="A running server, such as http://127.0.0.1:8000; default: start one on a free port.")
]
ModelPath = Annotated[Path | None, Option(help="The bundle's folder; default: the embedded model.")]
DatasetName = Annotated[str, Option(help="cifar10 or cifar100; its test pictures are sent as PNG.")]
DataRoot = Annotated[Path, Option(help="Folder of the CIFAR files.")]
Thresholds = Annotated[str, Option(help="Thresholds to compare, separated by commas; 1 is exits off.")]
Pictures = Annotated[int, Option(min=0, help="Number of test pictures, from the first; 0: all.")]
SentPictures = Annotated[int, Option(min=1, help="Test pictures that are sent, over and over.")]
ServerThreads = Annotated[
    int, Option(min=0, max=1024, help="Threads of the started server's network on the CPU; 0: torch decides.")
]
Connections = Annotated[int, Option(min=1, max=1000, help="Clients of the closed loops.")]
Rounds = Annotated[int, Option(min=1, help="How often each figure is measured, interleaved.")]
Seconds = Annotated[int, Option(min=1, help="Measured seconds of each load.")]
WarmupSeconds = Annotated[int, Option(min=1, help="Seconds of the same load before the measured ones.")]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N; auto takes the first GPU, if any.")]
Output = Annotated[Path, Option(help="The JSON file to write.")]
OutputBeside = Annotated[Path, Option(help="The JSON file to write; Markdown and plot go beside it.")]
Only = Annotated[str, Option(help="Parts to measure, separated by commas, or all; the file keeps the others.")]

TRUST_PARTS = ("certified", "audit", "audit-cost", "brownout", "privacy", "attack")
# By part: the numbers of frontends with which it is measured.
HOSTILE_PARTS = {"attacks": "0", "overload": "0", "fairness": "0,2", "faults": "0,2", "mutants": "0"}
PICTURE_SETS = ("cifar", "photos")


def parse_numbers(option: str, text: str, parse: Callable[[str], Any], least: float, most: float) -> tuple[Any, ...]:
    """ "0,0.5" -> (0.0, 0.5); "" -> (). Raises ValueError unless the numbers differ and are from `least` to `most`."""
    try:
        numbers = tuple(parse(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"{option} {text!r}: give numbers, separated by commas") from None
    if len(set(numbers)) != len(numbers) or not all(least <= number <= most for number in numbers):
        raise ValueError(f"{option} {text!r} are out of range: give different numbers from {least:g} to {most:g}")
    return numbers


def parse_thresholds(text: str, with_off: bool = False) -> tuple[float, ...]:
    """ "0,0.5,1" -> (0.0, 0.5, 1.0). with_off: threshold 1 must be among them. Raises ValueError."""
    thresholds = parse_numbers("thresholds", text, float, 0.0, 1.0)
    if not thresholds or (with_off and 1.0 not in thresholds):
        raise ValueError(f"thresholds {text!r} lack 1, exits off, which the others are compared with: add it")
    return thresholds


def parse_names(option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    """ "a,b" -> ("a", "b"); "" and "all" are all. Raises ValueError that names the unknown ones and the choice."""
    names = tuple(known) if text in ("", "all") else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} {', '.join(unknown)}: choose all, or some of {', '.join(known)}")
    return names


def parse_mix(text: str) -> tuple[float, ...]:
    """ "0.5,0.3,0.2" -> (0.5, 0.3, 0.2); "" -> (). Raises ValueError for shares that do not sum to 1."""
    try:
        shares = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        shares = (-1.0,)
    if shares and (min(shares) < 0.0 or abs(sum(shares) - 1.0) > 0.01):
        raise ValueError(f"exit_mix {text!r}: give shares of 0 or more that sum to 1, separated by commas")
    return shares


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The bundle that is measured, and the pictures that are sent."""

    model: ModelPath = None
    dataset: DatasetName = "cifar100"
    data_root: DataRoot = Path("data")


@dataclass(frozen=True, kw_only=True)
class ThresholdsOptions(DataOptions):
    """Throughput, latency and accuracy of a server by threshold, exits on against off. Needs wrk."""

    url: Url = None
    thresholds: Thresholds = "0,0.5,0.8,0.95,1"
    pictures: Pictures = 2000
    connections: Connections = 32
    rounds: Rounds = 4
    seconds: Seconds = 5
    warmup_seconds: WarmupSeconds = 1
    rate: Annotated[float, Option(min=0, help="Poisson arrivals/s of the open loop; 0: 70 % of the capacity at 1.")] = (
        0.0
    )
    server_threads: ServerThreads = 0
    output: Output = RESULTS / "thresholds.json"

    def __post_init__(self) -> None:
        parse_thresholds(self.thresholds, with_off=True)


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(DataOptions):
    """A server's answers against the evaluation of its bundle; exit status 1 when they do not agree."""

    url: Url = None
    thresholds: Thresholds = "0,0.5,0.8,0.95,1"
    pictures: Pictures = 0
    connections: Connections = 64
    server_threads: ServerThreads = 0
    output: Output = RESULTS / "accuracy.json"

    def __post_init__(self) -> None:
        parse_thresholds(self.thresholds)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(DataOptions):
    """The engine without HTTP, against a bare loop and against the most that exits can save."""

    thresholds: Thresholds = "0,0.5,0.7,0.9,1"
    pictures: Pictures = 2000
    device: Device = "auto"
    runner: Annotated[str, Option(help="auto, torch, openvino or cuda-graphs.")] = "auto"
    precision: Annotated[str, Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto"
    threads: Annotated[int, Option(min=0, help="Threads of a step on the CPU; 0: all cores.")] = 0
    max_batch_size: Annotated[int, Option(min=1, help="Maximum number of pictures in one batch.")] = 32
    rounds: Rounds = 5
    output: Output = RESULTS / "engine.json"

    def __post_init__(self) -> None:
        parse_thresholds(self.thresholds, with_off=True)


@dataclass(frozen=True, kw_only=True)
class ServerCostsOptions(DataOptions):
    """Readiness, one request alone, CPU, memory, and several frontends. Needs wrk."""

    pictures: SentPictures = 1000
    thresholds: Thresholds = "0.7,1"
    frontends: Annotated[str, Option(help="Numbers of frontends to compare, separated by commas.")] = "0,1,2"
    connections: Connections = 64
    rounds: Rounds = 4
    seconds: Seconds = 4
    requests: Annotated[int, Option(min=1000, help="Requests over which memory is watched.")] = 200_000
    output: Output = RESULTS / "server-costs.json"

    def __post_init__(self) -> None:
        parse_thresholds(self.thresholds)
        self.frontend_counts()

    def frontend_counts(self) -> tuple[int, ...]:
        """Numbers of frontends to compare."""
        return parse_numbers("frontends", self.frontends, int, 0, 256)


@dataclass(frozen=True, kw_only=True)
class RayProxyOptions(DataOptions):
    """What Ray Serve's ways to a replica cost, against one server of ours (extra `ray`)."""

    pictures: SentPictures = 256
    form: Annotated[int, Option(min=2, max=64, help="Pictures of a form.")] = 16
    connections: Connections = 64
    rounds: Rounds = 2
    seconds: Seconds = 5
    output: Output = RESULTS / "ray-proxy.json"


@dataclass(frozen=True, kw_only=True)
class TrustOptions(DataOptions):
    """Certified contracts, audits, brownout, privacy and slowdown attacks. Needs wrk."""

    only: Only = "all"
    pictures: Pictures = 0
    connections: Connections = 64
    rounds: Rounds = 3
    seconds: Seconds = 3
    open_seconds: Annotated[int, Option(min=1, help="Measured seconds of each open loop.")] = 5
    warmup_seconds: Annotated[float, Option(min=0.1, help="Seconds of the same load before those.")] = 1.0
    recovery_seconds: Annotated[int, Option(min=1, help="Seconds of light load after an overload.")] = 8
    audit_share: Annotated[float, Option(min=0.001, max=1, help="Audited share of streamed pictures.")] = 0.5
    stream: Annotated[int, Option(min=1, help="Maximum number of pictures of one corrupted stream.")] = 6000
    chunk: Annotated[int, Option(min=1, help="Pictures of a stream between two looks at the alarm.")] = 250
    truth: Annotated[int, Option(min=1, help="Pictures of a stream that are compared with full depth.")] = 2000
    clean: Annotated[int, Option(min=1, help="Pictures of the stream that is not corrupted.")] = 100_000
    kinds: Annotated[str, Option(help="Corruptions, separated by commas; default: all.")] = ""
    severities: Annotated[str, Option(help="Severities of the corruptions, separated by commas.")] = "1,2,3,4,5"
    alone: Annotated[int, Option(min=1, help="Requests sent one after the other.")] = 300
    attacked: Annotated[int, Option(min=1, help="Pictures that are made to go deep.")] = 512
    attack_steps: Annotated[int, Option(min=1, help="Steps of gradient descent.")] = 20
    output: Output = RESULTS / "trust.json"

    def __post_init__(self) -> None:
        parse_names("only", self.only, TRUST_PARTS)
        parse_numbers("severities", self.severities, int, 1, 5)


@dataclass(frozen=True, kw_only=True)
class HostileOptions(DataOptions):
    """Attacks, overload, greedy clients, faults and mutated requests."""

    only: Only = "all"
    frontends: Annotated[str, Option(help="Numbers of frontends; default: 0; faults and fairness also 2.")] = ""
    pictures: Annotated[int, Option(min=2, help="Test pictures that are sent, over and over.")] = 256
    rounds: Rounds = 3
    seconds: Annotated[float, Option(min=0.5, help="Measured seconds of each load.")] = 10.0
    attacks: Annotated[str, Option(help="Names of attacks, separated by commas; default: all.")] = ""
    faults: Annotated[str, Option(help="Names of faults, separated by commas; default: all.")] = ""
    repeats: Annotated[int, Option(min=1, help="How often SIGTERM and SIGINT are sent, to a server each.")] = 20
    mutants: Annotated[int, Option(min=1, help="Number of mutated requests.")] = 1_000_000
    first: Annotated[int, Option(min=0, help="Number of the first mutant.")] = 0
    output: Output = RESULTS / "hostile.json"

    def __post_init__(self) -> None:
        for part in parse_names("only", self.only, HOSTILE_PARTS):
            self.frontend_counts(part)

    def frontend_counts(self, part: str) -> tuple[int, ...]:
        """Numbers of frontends that this part is measured with."""
        return parse_numbers("frontends", self.frontends or HOSTILE_PARTS[part], int, 0, 256)


@dataclass(frozen=True, kw_only=True)
class PeersOptions(DataOptions):
    """Offramp beside other servers: the same weights, pictures and machine. Needs wrk."""

    peers: Annotated[str, Option(help="Peers to measure, separated by commas, or all.")] = "all"
    picture_sets: Annotated[str, Option(help="cifar (PNG), photos (JPEG), both with a comma, or nothing.")] = (
        "cifar,photos"
    )
    larger_model: Annotated[
        str, Option(help="Bundle, or architecture of 224 pixels with random weights, for photographs; empty: none.")
    ] = "resnet50"
    photos: Annotated[
        Path | None, Option(help="Folder or tar file of JPEGs; default: photos-caltech101.tar in the data root.")
    ] = None
    pictures: Annotated[int, Option(min=1, help="Pictures of each set; each is sent over and over.")] = 1000
    thresholds: Annotated[
        str,
        Option(help="Thresholds of Offramp; default: 1, the bundle's, the lowest with at most 1 % changed answers."),
    ] = ""
    exit_mix: Annotated[
        str, Option(help="Shares of the larger model's answers at exit 1, 2, …; default: those of the first model.")
    ] = ""
    connections: Connections = 64
    rounds: Rounds = 3
    seconds: Seconds = 5
    warmup_seconds: WarmupSeconds = 2
    tune_seconds: Annotated[int, Option(min=0, help="Seconds for each of a peer's settings; 0: only the first.")] = 3
    load: Annotated[float, Option(min=0.01, max=1.0, help="Open loop: share of the peer's capacity, sent to both.")] = (
        0.7
    )
    server_threads: ServerThreads = 0
    environments: Annotated[Path, Option(help="Folder of the peers' environments; missing ones are made.")] = Path(
        ".peers"
    )
    output: OutputBeside = RESULTS / "peers.json"

    def __post_init__(self) -> None:
        if self.thresholds:
            parse_thresholds(self.thresholds, with_off=True)
        self.sets()
        parse_mix(self.exit_mix)

    def sets(self) -> tuple[str, ...]:
        """The sets of pictures."""
        return parse_names("picture_sets", self.picture_sets, PICTURE_SETS) if self.picture_sets else ()


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Scheduling policies by load, simulated with the server's own scheduler."""

    mix: Annotated[
        Path, Option(help="JSON file of exit mixes: a result of `offramp bench thresholds`, or lists by name.")
    ] = RESULTS / "thresholds.json"
    profile: Annotated[str, Option(help="JSON files of cost profiles, separated by commas.")] = ""
    this_machine: Annotated[bool, Option(help="Measure this machine's step costs, and use them too.")] = False
    policy: Annotated[str, Option(help="Policies, separated by commas, or all.")] = "all"
    load: Annotated[str, Option(help="Shares of the capacity that are offered.")] = "0.3,0.5,0.7,0.8,0.9,1,1.2"
    clients: Annotated[str, Option(help="Closed loops besides: numbers of clients, separated by commas.")] = ""
    samples: Annotated[int, Option(min=10, help="Requests in each run.")] = 100_000
    objective_ms: Annotated[
        float, Option(min=0, help="Latency within which an answer counts; 0: 20 full passes of one picture.")
    ] = 0.0
    max_wait_ms: Annotated[
        float, Option(min=0, help="Predicted wait beyond which a request is refused; 0: half the objective.")
    ] = 0.0
    seed: Annotated[int, Option(min=0, help="Seed of arrivals and exits.")] = 0
    output: Output = RESULTS / "simulation.json"

    def __post_init__(self) -> None:
        if not self.profile and not self.this_machine:
            raise ValueError("no profile: give --profile, or --this-machine")
        self.numbers("load", float)
        self.numbers("clients", int)

    def numbers(self, name: str, parse: Callable[[str], Any]) -> tuple[Any, ...]:
        """The list in the option `name`."""
        return parse_numbers(name, getattr(self, name), parse, 0.001, 1e6)


@dataclass(frozen=True)
class PipelineOptions:
    """Pictures a second of the training's data pipeline alone, by number of decoding processes."""

    path: Annotated[str, typer.Argument(help="A folder of classes.")]
    workers: Annotated[str, Option(help="Numbers of decoding processes, separated by commas.")] = "0,1,2,4"
    size: Annotated[int, Option(min=8, max=2048, help="Side of the decoded pictures in pixels.")] = 224
    batch_size: Annotated[int, Option(min=1, help="Pictures a batch.")] = 64
    pictures: Annotated[int, Option(min=2, help="Maximum number of pictures to use, spread over the training set.")] = (
        4096
    )
    rounds: Rounds = 3
    device: Device = "auto"
    output: Output = RESULTS / "pipeline.json"

    def __post_init__(self) -> None:
        self.worker_counts()

    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of decoding processes."""
        if not self.workers:
            raise ValueError("workers '': give numbers, separated by commas")
        return parse_numbers("workers", self.workers, int, 0, 256)


@dataclass(frozen=True)
class PaperOptions:
    """Train networks by several methods over several seeds, and set the table beside the published figures."""

    dataset: Annotated[str, Option(help="cifar10, cifar100, or a folder of pictures.")] = "cifar100"
    data_root: DataRoot = Path("data")
    runs: Annotated[Path, Option(help="Folder of the runs; finished ones are not trained again.")] = Path("runs/paper")
    architectures: Annotated[str, Option(help="Networks, separated by commas.")] = "resnet18"
    width: Annotated[int | None, Option(min=4, help="Channels of the stem; default: the architecture's.")] = None
    input_size: Annotated[
        int | None, Option(min=16, max=1024, help="Side of the input in pixels; default: 32 for CIFAR, else 64.")
    ] = None
    head: Annotated[str, Option(help="Head of the early stages: journal, scan or light.")] = "journal"
    methods: Annotated[str, Option(help="Methods to compare, separated by commas.")] = "baseline,dsn,journal,ours"
    seeds: Annotated[str, Option(help="Seeds, separated by commas; three at least to tell methods apart.")] = "0,1,2"
    recipe: Annotated[str, Option(help="Length, schedule and augmentation, the same for every method.")] = "fast"
    epochs: Annotated[int | None, Option(min=1, help="Length of each run; default: the recipe's.")] = None
    hours: Annotated[
        float, Option(min=0, help="Stop training after this long; the next call continues. 0: no limit.")
    ] = 0.0
    backbones: Annotated[
        str, Option(help="Python files or modules with networks of one's own, separated by commas.")
    ] = ""
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N; auto takes the first GPU, if any.")] = "auto"
    precision: Annotated[str, Option(help="auto, float32 or bfloat16 (autocast).")] = "auto"
    output: Output = RESULTS / "paper.json"

    def __post_init__(self) -> None:
        for name in ("architectures", "methods", "seeds"):
            words = getattr(self, name).split(",")
            if not all(words) or len(set(words)) != len(words):
                raise ValueError(f"{name} {getattr(self, name)!r}: give each once, separated by commas")
        if not all(seed.isdecimal() for seed in self.seeds.split(",")):
            raise ValueError(f"seeds {self.seeds!r}: give whole numbers, separated by commas")
