"""Options of the server: one declaration each, ranges that hold from Python too."""

import subprocess
import sys
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from typer.models import OptionInfo

from offramp.server.engine.choices import PRECISIONS, RUNNERS
from offramp.server.engine.runners.choice import DEVICES
from offramp.server.engine.runners.cuda import lowering
from offramp.server.engine.runners.openvino import runner as openvino_runner
from offramp.server.settings import Settings
from tests.project import PROJECT


def test_every_option_has_a_help_text_and_a_default():
    hints = get_type_hints(Settings, include_extras=True)
    settings = Settings()
    for option in fields(Settings):
        declared = get_args(hints[option.name])[1]
        assert isinstance(declared, OptionInfo)
        assert declared.help
        assert declared.help.endswith(".")
        assert hasattr(settings, option.name)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("port", 70_000, "from 0 to 65535"),
        ("max_body_mib", 0, "from 0.001 to 4096"),
        ("max_wait_s", float("nan"), "from 0.001 to 3600"),
        ("client_max_inflight", -1, "at least 0"),
        ("log_level", "loud", "debug, info, warning, error"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(option, value, allowed):
    with pytest.raises(ValueError, match=rf"--{option.replace('_', '-')} .*{allowed}"):
        Settings(**{option: value})


def test_a_queue_too_small_for_one_request_is_refused():
    with pytest.raises(ValueError, match="--max-queue 10 is below --max-images 64"):
        Settings(max_queue=10)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"brownout_to": 0.1}, "--brownout-to 0.1 does nothing while --brownout-wait-s is 0"),
        ({"brownout_wait_s": 5.0}, "--brownout-wait-s 5.0 is not below --max-wait-s 0.5"),
        ({"audit_on_alarm": "tighten", "audit_share": 0.0}, "--audit-on-alarm 'tighten' does nothing"),
        ({"client_burst_s": 5.0}, "--client-burst-s 5.0 does nothing while --client-gmacs-per-s is 0"),
        ({"audit_on_alarm": "shout"}, "--audit-on-alarm 'shout' is unknown"),
    ],
)
def test_promises_that_cannot_hold_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Settings(**options)


def test_sizes_are_given_in_mib_and_megapixels():
    settings = Settings(max_body_mib=0.5, max_pixels_mp=0.25)
    assert (settings.max_body_bytes, settings.max_pixels) == (524_288, 250_000)


def test_limits_of_http_are_options():
    limits = Settings(max_url_kib=1, max_header_kib=4, max_headers=10, body_timeout_s=5, max_connections=7).http_limits
    assert (limits.url_bytes, limits.head_bytes, limits.num_headers) == (1024, 4096, 10)
    assert (limits.body_s, limits.connections) == (5, 7)
    assert Settings(frontends=4, max_connections=8).http_limits.connections == 2


def test_keys_come_from_the_option_and_the_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# the partners\n  first \n\nsecond\n")
    assert Settings().read_api_keys() == frozenset()
    assert Settings(api_keys=" a, b,,").read_api_keys() == {"a", "b"}
    assert Settings(api_keys="a", api_keys_file=file).read_api_keys() == {"a", "first", "second"}


@pytest.mark.parametrize("content", [None, "", "# none yet\n"])
def test_a_keys_file_that_gives_no_key_never_opens_the_server(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=str(file)):
        Settings(api_keys_file=file).read_api_keys()


@pytest.mark.parametrize("line", ["key-c # the third", "two keys", "a\tb"])
def test_a_key_with_white_space_is_refused_by_its_line_and_never_shown(tmp_path, line):
    file = tmp_path / "keys"
    file.write_text(f"# the partners\nfirst\n{line}\n")
    with pytest.raises(ValueError, match=f"{file} line 3 has white space inside a key: .*begin with #") as refused:
        Settings(api_keys_file=file).read_api_keys()
    assert line not in str(refused.value)
    with pytest.raises(ValueError, match=r"--api-keys has white space inside key 2: .*commas") as refused:
        Settings(api_keys=f"first,{line}").read_api_keys()
    assert line not in str(refused.value)


def test_the_options_load_nothing_heavy():
    code = "import sys, offramp.server.settings; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert {"torch", "fastapi", "pydantic", "numpy"} & set(result.stdout.split()) == set()


def test_the_names_are_those_that_the_engine_knows():
    assert set(RUNNERS) == {"auto", *DEVICES}
    assert set(PRECISIONS) == {*openvino_runner.PRECISIONS, *lowering.PRECISIONS}
