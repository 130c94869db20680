"""Starts the server and runs it until it is told to end."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from lissome.core.errors import ConfigError, DataError
from lissome.core.events import EventStream
from lissome.engine.decode import Decoder, DecoderSettings
from lissome.engine.decode.batching import Batcher
from lissome.engine.decode.cache import cache_named
from lissome.models.nested.folder import NestedFolder, nested_folder
from lissome.pipeline.decoding import policy_of
from lissome.serve.app import Limits, application

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_END = 5  # seconds that answers may take to their end when the server is told to end


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a model is served.

    Attributes:
        host: Where the server listens. Default 127.0.0.1: this machine alone.
        port: Its port; 0 takes a free one. Default 8000.
        key: What clients must show; None for nothing.
        context: Tokens of a prompt and its answer together (default: 2048, or what the model reads when that is less).
        parallel: Texts written at a time. Default 4; each has a cache of `context` tokens.
        queue: Requests that may wait beyond those before others are refused. Default 32.
        schedule: Bits by phase (default: what the folder says, else all bits).
        cache: How keys and values are held, such as ``int8:0.5`` (default: ``f16``).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    context: int | None = None
    parallel: int = 4
    queue: int = 32
    schedule: str | None = None
    cache: str | None = None


def serve(target: Any, settings: ServerSettings, events: EventStream) -> None:
    """Serve a folder of nested weights until a signal ends it.

    Args:
        target: The folder.
        settings: How.
        events: Where the address goes.

    Raises:
        ConfigError: When it is no such folder, or a setting cannot be.
        ArtifactError: When a file of the folder is damaged.
        DataError: When it has no tokenizer.
    """
    folder = nested_folder(target)
    if folder is None:
        raise ConfigError(
            f"{target} holds no nested weights, which is what the server runs; make them with: "
            f"lissome export {target} --to nested"
        )
    opened = NestedFolder.open(folder)
    context = _context(settings.context, opened)
    if settings.key == "":
        raise ConfigError("the key is empty; give one, or none.")
    codec, policy = opened.text, policy_of(opened, settings.schedule)
    held = DecoderSettings(
        cells=context * settings.parallel, texts=settings.parallel, **cache_named(settings.cache or "f16")
    )
    listening = _listen(settings.host, settings.port)
    batcher = Batcher(Decoder(opened.file, held), codec, slots=settings.parallel, queue=settings.queue)
    hosts = _LOOPBACK if settings.host in _LOOPBACK else ()
    app = application(batcher, Path(folder).resolve().name, Limits(key=settings.key, hosts=hosts), policy)
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=_END,
        server_header=False,
    )  # fmt: skip
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    events.message(f"{opened.name} answers at http://{shown}:{listening.getsockname()[1]}/v1 until Ctrl-C")
    if not hosts and settings.key is None:
        events.message(f"everybody who reaches {settings.host} may use it; --key asks for a key")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        batcher.close()
        listening.close()


def _context(given: int | None, folder: NestedFolder) -> int:
    most = folder.file.spec.context
    if given is not None and not 2 <= given <= most:
        raise ConfigError(f"the context must be 2 to {most} tokens, which {folder.name} reads; got {given}.")
    if most < 2:
        raise DataError(f"{folder.name} reads {most} token; there is nothing to serve.")
    return given or min(2048, most)


def _listen(host: str, port: int) -> socket.socket:
    """Open the socket before the weights are read, so that a port in use is said at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"cannot listen at {host}:{port} ({reason}); choose another --host or --port.") from error
