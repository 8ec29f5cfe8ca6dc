"""Whose word counts about where a request comes from, and by which names the server is asked."""

from __future__ import annotations

import pytest

from offramp.server.http.proxies import TrustedProxies, forwarded_scheme
from offramp.server.settings import Settings

PROXIES = TrustedProxies("10.0.0.0/8, 192.0.2.5,, fd00::/8")


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.1.2.3", True),
        ("192.0.2.5", True),
        ("192.0.2.6", False),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("::1", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_only_named_networks_are_trusted(address, trusted):
    assert PROXIES.trust(address) is trusted
    assert not TrustedProxies().trust(address)


@pytest.mark.parametrize(
    ("said", "client"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["1.1.1.1, 203.0.113.7, 10.0.0.9"], "203.0.113.7"),
        (["1.1.1.1", "203.0.113.7", "10.0.0.9"], "203.0.113.7"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["10.0.0.7, 10.0.0.9"], "10.0.0.7"),
        (["203.0.113.7, unknown, 10.0.0.9"], "10.0.0.9"),
        (["x" * 10_000], "10.0.0.1"),
        ([""], "10.0.0.1"),
        ([], "10.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(said, client):
    headers = [(b"x-forwarded-for", value.encode()) for value in said]
    assert PROXIES.client("10.0.0.1", headers) == client


@pytest.mark.parametrize(("said", "scheme"), [("https", "https"), ("HTTPS", "https"), ("gopher", None), ("", None)])
def test_the_scheme_is_the_proxys(said, scheme):
    assert forwarded_scheme([(b"x-forwarded-proto", said.encode())]) == scheme


def test_what_is_no_address_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"--trusted-proxies: 'proxy\.local'.*10\.0\.0\.0/8"):
        Settings(trusted_proxies="10.0.0.0/8, proxy.local")


async def test_an_unknown_host_is_refused_before_a_missing_key(serve):
    async with serve(settings=Settings(allowed_hosts="api.example.com", api_keys="right")) as site:
        for host, status in (("evil.test", 400), ("api.example.com", 401)):
            assert (await site.client.get("/v1/models", headers={"Host": host})).status_code == status


@pytest.mark.parametrize(
    "name", ["http://foo.com", "foo.com/", "foo.com:8000", "[::1]:80", "::1", "*", "*.", "foo com", "foo.*"]
)
def test_what_can_never_be_a_host_is_refused_at_the_start(name):
    with pytest.raises(ValueError, match=r"--allowed-hosts '.*' is no host name: .* such as example.com"):
        Settings(allowed_hosts=f"good.com, {name}")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("api.example.com", 200),
        ("API.example.com:8000", 200),
        ("a.b.example.org", 200),
        ("[::1]:8000", 200),
        ("example.org", 400),
        ("notexample.org", 400),
        ("evil.test", 400),
        ("127.0.0.1:8000", 400),
    ],
)
async def test_only_allowed_hosts_are_answered(serve, host, status):
    async with serve(settings=Settings(allowed_hosts="api.example.com, *.example.org,[::1]")) as site:
        response = await site.client.get("/v1/models", headers={"Host": host})
        assert response.status_code == status
        if status == 400:
            assert response.json()["type"] == "urn:offramp:problem:unknown-host"
            assert "X-Request-Id" in response.headers
        assert (await site.client.get("/readyz", headers={"Host": host})).status_code == 200
