"""Lists on the command line, and the commands themselves."""

from typing import Any

import pytest

from benchmarks import options
from benchmarks.commands import COMMANDS
from benchmarks.options import (
    AccuracyOptions,
    HostileOptions,
    PaperOptions,
    PeersOptions,
    PipelineOptions,
    ServerCostsOptions,
    SimulateOptions,
    ThresholdsOptions,
    TrustOptions,
    parse_mix,
    parse_names,
    parse_thresholds,
)


def test_lists_are_read_in_the_given_order() -> None:
    assert parse_thresholds("0, 0.95,1,0.5") == (0.0, 0.95, 1.0, 0.5)
    assert ServerCostsOptions(frontends="2,0,1").frontend_counts() == (2, 0, 1)
    assert parse_names("only", "b, a", ("a", "b")) == ("b", "a")
    assert parse_names("only", "all", ("a", "b")) == parse_names("only", "", ("a", "b")) == ("a", "b")
    assert parse_mix("0.5,0.3,0.2") == (0.5, 0.3, 0.2)
    assert HostileOptions().frontend_counts("faults") == (0, 2)
    assert HostileOptions(frontends="1").frontend_counts("faults") == (1,)


@pytest.mark.parametrize("text", ["", "a,1", "0.5,,1", "1.5,1", "-0.1,1", "nan,1", "inf,1", "0.5,0.5,1"])
def test_a_list_that_is_not_of_different_thresholds_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        AccuracyOptions(thresholds=text)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ThresholdsOptions, {"thresholds": "0,0.5"}, "lack 1"),
        (options.EngineOptions, {"thresholds": "0.5,0.7"}, "lack 1"),
        (PeersOptions, {"thresholds": "0.5,0.7"}, "lack 1"),
        (PeersOptions, {"picture_sets": "cifar,paintings"}, "paintings: choose all, or some of cifar, photos"),
        (PeersOptions, {"exit_mix": "0.5,0.2"}, "exit_mix"),
        (PeersOptions, {"exit_mix": "1.5,-0.5"}, "exit_mix"),
        (PeersOptions, {"exit_mix": "half,half"}, "exit_mix"),
        (ServerCostsOptions, {"frontends": "1,1"}, "frontends '1,1' are out of range: give different numbers from 0"),
        (ServerCostsOptions, {"frontends": "-1"}, "frontends"),
        (ServerCostsOptions, {"frontends": "1.5"}, "frontends"),
        (TrustOptions, {"only": "audits"}, "only audits: choose all, or some of certified"),
        (TrustOptions, {"severities": "0"}, "from 1 to 5"),
        (TrustOptions, {"severities": "1,,2"}, "give numbers"),
        (HostileOptions, {"only": "nothing"}, "only nothing"),
        (HostileOptions, {"frontends": "x"}, "frontends 'x': give numbers"),
        (PipelineOptions, {"path": "photos", "workers": ""}, "workers"),
        (PipelineOptions, {"path": "photos", "workers": "two"}, "workers"),
        (PipelineOptions, {"path": "photos", "workers": "257"}, "workers"),
        (PipelineOptions, {"path": "photos", "workers": "1,1"}, "workers"),
        (PaperOptions, {"methods": "dsn,dsn"}, "methods 'dsn,dsn': give each once, separated by commas"),
        (PaperOptions, {"seeds": "0,,1"}, "seeds '0,,1': give each once"),
        (PaperOptions, {"seeds": "0,x"}, "seeds '0,x': give whole numbers"),
        (SimulateOptions, {"profile": ""}, "no profile: give --profile"),
        (SimulateOptions, {"profile": "p", "load": "0.5,x"}, "load '0.5,x': give numbers"),
        (SimulateOptions, {"profile": "p", "load": "0,1"}, "load '0,1' are out of range"),
        (SimulateOptions, {"profile": "p", "clients": "1.5"}, "clients '1.5': give numbers"),
    ],
)
def test_options_that_make_no_sense_are_refused(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_every_options_class_has_a_command() -> None:
    declared = {name for name in vars(options) if name.endswith("Options")} - {"DataOptions"}
    assert declared == {kind.__name__ for kind, _, _ in COMMANDS.values()}
