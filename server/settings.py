"""Every option of the server, declared once with its range, help and default.

The command line derives `--max-body-mib` and `OFFRAMP_MAX_BODY_MIB` from a field named `max_body_mib`. This module
imports neither torch nor the web framework, so that `--help` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from offramp.server.engine.choices import ON_ALARM, PRECISIONS, RUNNERS
from offramp.server.engine.policies import DEFAULT_POLICY, POLICIES
from offramp.server.http.hosts import AllowedHosts
from offramp.server.http.http_limits import HttpLimits, connections_of_one_process
from offramp.server.http.proxies import TrustedProxies
from offramp.server.request.client_limits import ClientLimits

LOG_LEVELS = ("debug", "info", "warning", "error")


def flag(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def option(help: str) -> Any:
    """An option with this help text."""
    return typer.Option(help=help)


def between(low: float, high: float | None, help: str) -> Any:
    """An option for a number from `low` to `high`; None for no upper end."""
    return typer.Option(min=low, max=high, help=help)


@dataclass(frozen=True)
class Settings:
    """Options of `offramp serve`. Raises ValueError if a value is out of its range, or contradicts another."""

    model: Annotated[
        list[Path] | None,
        option("Folder of a bundle. Repeat it for several; the first is the default. Default: the embedded one."),
    ] = None
    backbones: Annotated[str, option("Networks of your own: Python files or modules, separated by commas.")] = ""
    host: Annotated[str, option("Address to listen on; 0.0.0.0: every interface.")] = "127.0.0.1"
    port: Annotated[int, between(0, 65535, "Port to listen on; 0: any free port.")] = 8000
    frontends: Annotated[
        int, between(0, 256, "HTTP processes, in addition to one engine process; 0: one process does all.")
    ] = 0
    device: Annotated[str, option("auto, cpu, cuda or cuda:N; auto: the first GPU, else the CPU.")] = "auto"
    runner: Annotated[str, option(f"{', '.join(RUNNERS)}; auto: openvino on a CPU, cuda-graphs on a GPU.")] = "auto"
    precision: Annotated[
        str,
        option(
            f"{', '.join(PRECISIONS)}; auto: the fastest precision that passes the check against float32; a few "
            "answers near a threshold may change."
        ),
    ] = "auto"
    int8_pictures: Annotated[
        Path | None,
        option("Folder of pictures like your traffic, to calibrate the quantisation ranges of --precision int8."),
    ] = None
    threads: Annotated[
        int, between(0, 1024, "Maximum number of CPU threads for one batch; small batches use one. 0: all cores.")
    ] = 0
    policy: Annotated[str, option(f"Which batch runs next: {', '.join(POLICIES)}. See docs/performance.md.")] = (
        DEFAULT_POLICY
    )
    max_batch_size: Annotated[int, between(1, 4096, "Maximum number of pictures in one batch.")] = 32
    max_queue: Annotated[
        int,
        between(1, 1_000_000, "Maximum number of pictures in flight (queued and running) in a model; above it, 503."),
    ] = 1024
    max_wait_s: Annotated[float, between(0.001, 3600, "Longest predicted wait, in seconds; above it, 503.")] = 0.5
    deadline_ms: Annotated[
        float, between(0, 3_600_000, "Deadline of requests without `deadline_ms`, in ms; 0: none.")
    ] = 0.0
    audit_share: Annotated[
        float, between(0, 1, "Share of pictures that also run to full depth after their answer; 0: none.")
    ] = 0.01
    audit_false_alarm_every: Annotated[
        float,
        between(100, 1e12, "On average at least this many audited pictures between two false alarms of one promise."),
    ] = 1e6
    audit_on_alarm: Annotated[
        str,
        option("When a promise is broken: report, tighten (use the next stricter certified thresholds) or full-depth."),
    ] = "report"
    brownout_wait_s: Annotated[
        float,
        between(
            0,
            3600,
            "Brownout: lower the thresholds when the predicted wait exceeds this, in seconds, only for requests that "
            "allow it; 0: never.",
        ),
    ] = 0.0
    brownout_to: Annotated[
        float,
        between(0, 1, "Disagreement allowed under brownout for requests without a contract; 0: they are not degraded."),
    ] = 0.0
    max_body_mib: Annotated[float, between(0.001, 4096, "Largest request body, in MiB.")] = 16.0
    max_images: Annotated[int, between(1, 4096, "Maximum number of pictures in one request.")] = 64
    max_uploads_mib: Annotated[
        float,
        between(0.01, 1_000_000, "Memory for all request bodies, in MiB; above it, 503. One client may use half."),
    ] = 192.0
    max_pixels_mp: Annotated[
        float, between(0.001, 1000, "Largest picture, in megapixels, by its header; above it, 413.")
    ] = 25.0
    decode_threads: Annotated[int, between(0, 256, "Threads that decode pictures; 0: one per core, at most 8.")] = 0
    decode_memory_mib: Annotated[
        float, between(1, 1_000_000, "Memory for large pictures, shared, in MiB; one that needs more alone gets 413.")
    ] = 400.0
    api_keys: Annotated[str, option("Accepted API keys, separated by commas. Default: no key is needed.")] = ""
    api_keys_file: Annotated[
        Path | None, option("File of accepted API keys, one per line; a line that begins with # is a comment.")
    ] = None
    client_max_inflight: Annotated[
        int,
        between(
            0,
            None,
            "Maximum number of unanswered requests of one client (key or address); above it, 429. 0: no limit.",
        ),
    ] = 0
    client_gmacs_per_s: Annotated[
        float, between(0, None, "Billions of multiply-adds per second for one client; above it, 429. 0: no limit.")
    ] = 0.0
    client_burst_s: Annotated[
        float, between(0.1, 3600, "Seconds of unused compute that one client may save and spend at once.")
    ] = 10.0
    client_deep_share: Annotated[
        float,
        between(
            0.01,
            1,
            "Maximum share of all recent work that one client may cause after exit 1 while others wait; above it, 429.",
        ),
    ] = 1.0
    private: Annotated[bool, option("Hide the exit of each picture and its times from clients.")] = False
    answer_step_ms: Annotated[
        float,
        between(
            0, 10_000, "Round each response time up to a multiple of this many milliseconds, to hide the exit; 0: off."
        ),
    ] = 0.0
    drain_delay_s: Annotated[
        float, between(0, 3600, "Seconds from SIGTERM, when /readyz turns 503, until the port closes.")
    ] = 0.5
    drain_timeout_s: Annotated[
        int, between(1, 3600, "Maximum time for the requests in flight after the port has closed, in seconds.")
    ] = 30
    max_connections: Annotated[
        int, between(0, 1_000_000, "Maximum number of open connections; 0: 10000, or fewer by the system's limit.")
    ] = 0
    client_max_connections: Annotated[
        int, between(0, 1_000_000, "Maximum number of open connections of one address; 0: no limit.")
    ] = 0
    max_header_kib: Annotated[
        float, between(4, 1024, "Largest request line and headers, or trailers, in KiB; above it, 431.")
    ] = 32.0
    max_headers: Annotated[int, between(10, 10_000, "Maximum number of headers of a request; above it, 431.")] = 100
    max_url_kib: Annotated[float, between(0.25, 1024, "Longest URL, in KiB; above it, 414.")] = 8.0
    header_timeout_s: Annotated[
        float, between(0.1, 3600, "Seconds for the headers of a request, and for the first byte of a connection.")
    ] = 10.0
    body_timeout_s: Annotated[float, between(0.1, 86_400, "Seconds for the body of a request, after its headers.")] = (
        60.0
    )
    keep_alive_s: Annotated[float, between(0, 86_400, "Seconds that an idle connection stays open.")] = 75.0
    write_timeout_s: Annotated[float, between(0.1, 3600, "Seconds that a client has to read its answer.")] = 30.0
    trusted_proxies: Annotated[
        str,
        option("Addresses or networks of proxies whose X-Forwarded-For and -Proto are trusted, separated by commas."),
    ] = ""
    allowed_hosts: Annotated[
        str, option("Accepted Host names, separated by commas; *.example.com: all names below it. Default: any.")
    ] = ""
    log_level: Annotated[str, option(f"{', '.join(LOG_LEVELS)}.")] = "info"
    access_log: Annotated[bool, option("Log one line for each request.")] = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            value, declared = getattr(self, field.name), get_args(hints[field.name])[1]
            low, high = declared.min, declared.max
            if low is not None and not low <= value <= (float("inf") if high is None else high):
                allowed = f"at least {low}" if high is None else f"from {low} to {high}"
                raise ValueError(f"{flag(field.name)} {value} is out of range: give a number {allowed}")
        for name, known in (
            ("runner", RUNNERS),
            ("precision", PRECISIONS),
            ("policy", POLICIES),
            ("audit_on_alarm", ON_ALARM),
            ("log_level", LOG_LEVELS),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{flag(name)} {value!r} is unknown: choose one of {', '.join(known)}")
        if (self.precision == "int8") != (self.int8_pictures is not None):
            raise ValueError("--precision int8 and --int8-pictures FOLDER belong together: give both or neither")
        if self.brownout_to and not self.brownout_wait_s:
            raise ValueError(
                f"--brownout-to {self.brownout_to} does nothing while --brownout-wait-s is 0: give the wait above "
                "which thresholds fall, such as 0.1, or leave both out"
            )
        if self.client_burst_s != type(self).client_burst_s and not self.client_gmacs_per_s:
            raise ValueError(
                f"--client-burst-s {self.client_burst_s} does nothing while --client-gmacs-per-s is 0: give "
                "both or neither"
            )
        if self.audit_on_alarm != "report" and not self.audit_share:
            raise ValueError(
                f"--audit-on-alarm {self.audit_on_alarm!r} does nothing while --audit-share is 0: give a "
                "share such as 0.01"
            )
        if self.brownout_wait_s >= self.max_wait_s:
            raise ValueError(
                f"--brownout-wait-s {self.brownout_wait_s} is not below --max-wait-s {self.max_wait_s}: requests "
                "would be refused before thresholds fall; lower the first or raise the second"
            )
        if self.max_uploads_mib < 6 * self.max_body_mib:
            raise ValueError(
                f"--max-uploads-mib {self.max_uploads_mib} is below six times --max-body-mib {self.max_body_mib}: one "
                "client holds half of it, and JSON takes three times its size; raise the first or lower the second"
            )
        TrustedProxies(self.trusted_proxies)
        AllowedHosts(self.allowed_hosts)
        if self.max_queue < self.max_images:
            raise ValueError(
                f"--max-queue {self.max_queue} is below --max-images {self.max_images}: a full request would never "
                "be accepted; raise the first or lower the second"
            )

    @property
    def client_limits(self) -> ClientLimits:
        """Limits of each client."""
        return ClientLimits(
            self.client_max_inflight, self.client_gmacs_per_s * 1e9, self.client_burst_s, self.client_deep_share
        )

    @property
    def http_limits(self) -> HttpLimits:
        """Limits on the connections of one HTTP process."""
        return HttpLimits(
            url_bytes=round(self.max_url_kib * 1024),
            head_bytes=round(self.max_header_kib * 1024),
            num_headers=self.max_headers,
            head_s=self.header_timeout_s,
            body_s=self.body_timeout_s,
            keep_alive_s=self.keep_alive_s,
            write_s=self.write_timeout_s,
            connections=connections_of_one_process(self.max_connections, self.frontends or 1),
            client_connections=self.client_max_connections,
        )

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, in bytes."""
        return round(self.max_body_mib * 2**20)

    @property
    def max_uploads_bytes(self) -> int:
        """Memory for request bodies, in bytes."""
        return round(self.max_uploads_mib * 2**20)

    @property
    def decode_memory_bytes(self) -> int:
        """Memory for decoding large pictures, in bytes."""
        return round(self.decode_memory_mib * 2**20)

    @property
    def max_pixels(self) -> int:
        """Largest picture, in pixels."""
        return round(self.max_pixels_mp * 1e6)

    def read_api_keys(self) -> frozenset[str]:
        """The accepted keys, from the option and from the file. Without keys, everybody may ask.

        Raises ValueError if the file cannot be read or holds no key, or if a key has white space inside.
        """
        keys = {key.strip() for key in self.api_keys.split(",")}
        for number, key in enumerate(self.api_keys.split(","), start=1):
            if len(key.split()) > 1:
                raise ValueError(f"--api-keys has white space inside key {number}: separate keys with commas")
        if self.api_keys_file is not None:
            try:
                lines = self.api_keys_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"--api-keys-file {self.api_keys_file} cannot be read: {error}") from error
            for number, line in enumerate(lines, start=1):
                if len(line.split()) > 1 and not line.lstrip().startswith("#"):
                    raise ValueError(
                        f"--api-keys-file {self.api_keys_file} line {number} has white space inside a key: write "
                        "one key per line; only lines that begin with # are comments"
                    )
            from_file = {line.strip() for line in lines if not line.lstrip().startswith("#")} - {""}
            if not from_file:
                raise ValueError(f"--api-keys-file {self.api_keys_file} holds no key: write one per line")
            keys |= from_file
        return frozenset(keys - {""})
