"""The host names that the server answers to. Without them, a web page could reach it under a name of its own."""

from __future__ import annotations

import re

NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]")


class AllowedHosts:
    """The allowed names of the Host header.

    names: separated by commas, without ports; "*.example.com" is every name below example.com. Empty: any name. Raises
    ValueError for an invalid name.
    """

    def __init__(self, names: str = "") -> None:
        given = [name.strip().lower() for name in names.split(",") if name.strip()]
        for name in given:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"--allowed-hosts {name!r} is no host name: give names without scheme, port and path, such as "
                    "example.com, *.example.com or [::1]"
                )
        self._names = frozenset(name for name in given if not name.startswith("*."))
        self._endings = tuple(name[1:] for name in given if name.startswith("*."))
        self._any = not given

    def allow(self, host: str) -> bool:
        """Whether a Host header, with or without a port, has an allowed name."""
        host = host.strip().lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        return self._any or name in self._names or name.endswith(self._endings)
