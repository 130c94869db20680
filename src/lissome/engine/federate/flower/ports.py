"""Addresses of a federation's processes: which are free, who listens at one, and whether connections are encrypted."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable

from lissome.core.errors import ConfigError

HERE = "127.0.0.1"
"""This machine, for itself alone."""


LOOKING = 10.0
"""Seconds between two looks at whether a server is still there."""


def free_port(host: str = HERE) -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_at(host: str, port: int) -> int:
    """Return the port to listen at, a free one for 0; refuse what nothing can listen at.

    Raises:
        ConfigError: When the port is none, or the host is not this machine.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"{port} is no port; give --port a number below 65536, or 0 for any that is free.")
    try:
        return port or free_port(host)
    except OSError as error:
        raise ConfigError(f"nothing can listen at {host} here ({error}); name an address of this machine.") from error


def speaks_tls(host: str, port: int) -> bool:
    """Whether who listens there encrypts connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent but a greeting
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout=5.0) as plain,
        context.wrap_socket(plain),
    ):
        return True
    return False


def listens(host: str, port: int) -> bool:
    """Whether somebody listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False  # refused, out of reach, or of a name that nobody knows


class Reach:
    """Says once when nobody listens at an address any more, and once when somebody does again.

    Args:
        address: ``host:port``.
        say: What takes the line.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._address, self._place, self._say = address, check_address(address), say
        self._next, self._met, self._gone = 0.0, False, False

    def look(self) -> None:
        """Look every few seconds, at most; who was never there is not missed."""
        if time.monotonic() < self._next:
            return
        self._next, there = time.monotonic() + LOOKING, listens(*self._place)
        if there and self._gone:
            self._say(f"something listens at {self._address} again")
        elif not there and self._met and not self._gone:
            self._say(
                f"nothing listens at {self._address} since {time.strftime('%H:%M')}: the federation is over, or its "
                "server is started anew; it is tried again until something does, stop it with Ctrl-C"
            )
        self._met = self._met or there
        self._gone = self._met and not there


def check_address(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        ConfigError: When it has no port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{address!r} is not an address; write HOST:PORT.")
    return host.strip("[]"), int(port)
