"""Trusted proxies: their headers give the address of the client."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

SCHEMES = ("http", "https")


class TrustedProxies:
    """Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto count.

    text: separated by commas, such as "10.0.0.0/8, ::1". Raises ValueError that names an invalid part.
    """

    def __init__(self, text: str = "") -> None:
        parts = [part.strip() for part in text.split(",")]
        try:
            self._networks = [ip_network(part, strict=False) for part in parts if part]
        except ValueError as error:
            raise ValueError(
                f"--trusted-proxies: {error}; give addresses or networks with commas between, such as 10.0.0.0/8"
            ) from error

    def trust(self, address: str) -> bool:
        """Whether the address belongs to a trusted proxy."""
        if not self._networks:
            return False
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client(self, proxy: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The client of a request from a trusted proxy: the last address in X-Forwarded-For that is no such proxy.

        The first address if all are proxies. A part that is no address ends the search.
        """
        chain = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
        client = proxy
        for part in reversed(chain.split(",")):
            address = _parse(_without_port(part.strip()))
            if address is None:
                break
            client = str(address)
            if not self.trust(client):
                break
        return client


def forwarded_scheme(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The last X-Forwarded-Proto, if it is one of SCHEMES."""
    schemes = b",".join(value for name, value in headers if name == b"x-forwarded-proto").decode("latin-1")
    scheme = schemes.rpartition(",")[2].strip().lower()
    return scheme if scheme in SCHEMES else None


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket for IPv4 and IPv6 shows IPv4 addresses as IPv6.
    return getattr(address, "ipv4_mapped", None) or address
