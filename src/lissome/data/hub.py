"""Names that are no files: what lies beside them, and data sets of the hub, which may be out of reach."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from lissome.core.errors import nearest
from lissome.core.optional import optional_import


def guessed(path: Path) -> str:
    """Word which file or folder of nearly the same name lies there; empty when none does."""
    folder = path.parent
    guess = nearest(path.name, [entry.name for entry in folder.iterdir()] if folder.is_dir() else [])
    return f" did you mean {guess!r}?" if guess else ""


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """Let the hub's library look at its own store alone while the hub has no address: it would try for a minute."""
    constants: Any = optional_import("huggingface_hub.constants", extra="eval")
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _has_address(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _has_address(url: str) -> bool:
    """Whether the host of an address is known; behind a proxy nobody here can tell."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return False
    return True
