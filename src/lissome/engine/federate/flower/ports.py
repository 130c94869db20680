"""Addresses of a federation's processes: which are free, who listens at one, and whether connections are encrypted."""

from __future__ import annotations

import contextlib
import socket
import ssl

from lissome.core.errors import ConfigError

HERE = "127.0.0.1"
"""This machine, for itself alone."""


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


def check_address(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        ConfigError: When it has no port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{address!r} is not an address; write HOST:PORT.")
    return host.strip("[]"), int(port)
