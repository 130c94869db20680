"""The server as an ASGI application: routes, limits, and readers that go away.

The event loop reads and answers; the thread of a `Batcher` writes texts. Between them stands one queue per request,
which holds no more than the tokens that were asked for, so that a slow reader slows nobody down.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from lissome.core.errors import DataError, LissomeError
from lissome.engine.decode import Order, Piece
from lissome.engine.decode.batching import Batcher, Busy, Job
from lissome.engine.decode.phases import Policy
from lissome.serve.answered import Answer, event
from lissome.serve.asked import AnyRequest, Chat, Completion, RefusedError, read

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Responder = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may cost.

    Attributes:
        body: Bytes of a request. Default 1 MiB, far more text than small models read.
        patience: Seconds that a client may take to send its request, or to take a piece of its answer. Default 30.
        hosts: Names by which the server may be called, so that no page in a browser reaches it under another; empty
            for any.
        key: What clients must show; None for nothing.
    """

    body: int = 1 << 20
    patience: float = 30.0
    hosts: tuple[str, ...] = ()
    key: str | None = None


def application(batcher: Batcher, name: str, limits: Limits | None = None, policy: Policy | None = None) -> Starlette:
    """Return the application.

    Args:
        batcher: Writes the texts; it is closed by whoever made it.
        name: What the model is called.
        limits: What a client may cost.
        policy: Decides bits (default: all bits).
    """
    server = _Server(batcher, name, limits or Limits(), policy)
    routes = [
        Route("/health", server.health, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{name:path}", server.model, methods=["GET"]),
        Route("/v1/completions", server.completion, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
    ]
    handlers: Any = {RefusedError: _refused, HTTPException: _no_such, ClientDisconnect: _nobody, Exception: _failed}
    return Starlette(routes=routes, exception_handlers=handlers)


class _Server:
    def __init__(self, batcher: Batcher, name: str, limits: Limits, policy: Policy | None) -> None:
        self.batcher, self.name, self.limits, self.policy = batcher, name, limits, policy

    async def health(self, request: Request) -> JSONResponse:
        """Say that the server lives, and how busy it is."""
        self._check(request, open_to_all=True)
        counts = {"active": self.batcher.active, "waiting": self.batcher.waiting}
        return JSONResponse({"status": "ok", "model": self.name, "context": self.batcher.context, **counts})

    async def models(self, request: Request) -> JSONResponse:
        """List the one model."""
        self._check(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> JSONResponse:
        """Describe the one model."""
        self._check(request)
        self._require(request.path_params["name"])
        return JSONResponse(self._model())

    async def completion(self, request: Request) -> Responder:
        """Continue a text."""
        return await self._answer(request, Completion)

    async def chat(self, request: Request) -> Responder:
        """Answer messages."""
        return await self._answer(request, Chat)

    async def _answer(self, request: Request, kind: type[AnyRequest]) -> Responder:
        self._check(request)
        asked = read(kind, await self._body(request))
        self._require(asked.model)
        sampling, stops = asked.sampling(), asked.stops()
        tokens = await asyncio.to_thread(asked.tokens, self.batcher.codec)  # of a long text this takes a while
        room = self.batcher.context - len(tokens)
        if room < 1 or not tokens:
            raise RefusedError(
                400, f"the prompt has {len(tokens)} tokens; it may have 1 to {self.batcher.context - 1}.",
                "context_length_exceeded",
            )  # fmt: skip
        order = Order(
            prompt=tuple(tokens), most=asked.most(room), sampling=sampling, policy=self.policy, stop=stops,
            continues=kind is Completion,
        )  # fmt: skip
        pieces = _Pieces(self.batcher, order)
        answer = Answer(chat=kind is Chat, model=self.name, prompt_tokens=len(tokens), usage=asked.wants_usage)
        return (_Stream if asked.stream else _Whole)(pieces, answer, self.limits.patience)

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "lissome"}

    def _require(self, name: str | None) -> None:
        """Refuse another model's name; without one, this model is meant."""
        if name not in (None, self.name):
            raise RefusedError(404, f"there is no model {name!r:.80}; this is {self.name}.", "model_not_found")

    def _check(self, request: Request, *, open_to_all: bool = False) -> None:
        """Refuse who calls the server by another name, or has not its key."""
        try:
            named = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:  # half an IPv6 address
            named = None
        if self.limits.hosts and named not in self.limits.hosts:
            raise RefusedError(403, f"the server is called {self.limits.hosts[0]} here.", "wrong_host")
        if self.limits.key is None or open_to_all:
            return
        given = request.headers.get("authorization", "").encode("latin-1")  # the bytes that were sent
        given = given[7:] if given[:7].lower() == b"bearer " else given
        if not hmac.compare_digest(given, self.limits.key.encode()):
            raise RefusedError(401, "this server wants its key, as Authorization: Bearer KEY.", "invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "the body must be JSON, with Content-Type: application/json.", "invalid_json")
        body, most = bytearray(), self.limits.body
        large = RefusedError(413, f"the body is larger than {most} bytes.", "request_too_large")
        if int(request.headers.get("content-length", "0")) > most:  # h11 lets numbers pass alone
            raise large
        try:
            async with asyncio.timeout(self.limits.patience):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise large
        except TimeoutError as error:
            raise RefusedError(408, f"the body took more than {self.limits.patience:g} s.", "timeout") from error
        return bytes(body)


class _Pieces:
    """The pieces of an order, on their way from the writing thread to the event loop."""

    def __init__(self, batcher: Batcher, order: Order) -> None:
        self._queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        try:
            self.job: Job = batcher.submit(order, self._hear)
        except Busy as error:
            raise RefusedError(429, "the queue is full; try again in a moment.", "queue_full") from error
        except DataError as error:
            raise RefusedError(400, str(error), "context_length_exceeded") from error

    def _hear(self, piece: Piece) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
        except RuntimeError:  # the loop is closed: nobody is there any more
            self.job.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield pieces up to the last one.

        Raises:
            RefusedError: When writing went wrong, or the server ends.
        """
        while True:
            piece = await self._queue.get()
            if piece.finish == "error":
                known = isinstance(self.job.error, LissomeError)
                raise RefusedError(400 if isinstance(self.job.error, DataError) else 500,
                                   str(self.job.error) if known else "writing failed.", "failed")  # fmt: skip
            if piece.finish == "cancelled":
                raise RefusedError(503, "the server ends.", "shutting_down")
            yield piece
            if piece.finish:
                return


class _Whole:
    """Answers at once."""

    def __init__(self, pieces: _Pieces, answer: Answer, patience: float) -> None:
        self._pieces, self._answer, self._patience = pieces, answer, patience

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await _unless_gone(self._respond(scope, receive, send), receive, self._pieces.job)

    async def _respond(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        texts, last = [], Piece("", 0)
        try:
            async for last in self._pieces:
                texts.append(last.text)
            response = JSONResponse(self._answer.whole("".join(texts), last))
        except RefusedError as error:
            response = JSONResponse(error.to_json(), error.status)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):  # of a reader that takes nothing
                await response(scope, receive, send)


class _Stream:
    """Answers in server-sent events, as soon as there is text."""

    def __init__(self, pieces: _Pieces, answer: Answer, patience: float) -> None:
        self._pieces, self._answer, self._patience = pieces, answer, patience

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await _unless_gone(self._respond(send), receive, self._pieces.job)

    async def _respond(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._events():
                async with asyncio.timeout(self._patience):  # the server waits here for a reader that takes nothing
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        for chunk in self._answer.first():
            yield chunk
        try:
            async for piece in self._pieces:
                for chunk in self._answer.events(piece):
                    yield chunk
        except RefusedError as error:
            yield event(error.to_json())


async def _unless_gone(answering: Awaitable[None], receive: Receive, job: Job) -> None:
    """Answer for as long as somebody listens; then nobody writes any more either."""
    answer, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        job.cancel()
        for task in (answer, gone):
            task.cancel()
        results = await asyncio.gather(answer, gone, return_exceptions=True)
    if isinstance(results[0], Exception) and not isinstance(results[0], OSError):
        raise results[0]


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return JSONResponse(error.to_json(), error.status, {"Retry-After": "1"} if error.status == 429 else None)


async def _no_such(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    own = RefusedError(error.status_code, f"{request.method} {request.url.path:.80}: {error.detail}.", "not_found")
    return JSONResponse(own.to_json(), own.status, error.headers)


async def _nobody(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({}, 400)  # who asked went away while asking


async def _failed(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse(RefusedError(500, "the server failed.", "failed").to_json(), 500)
