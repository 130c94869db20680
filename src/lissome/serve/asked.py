"""What clients may ask: the fields of the OpenAI interface, checked one by one before any work."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from lissome.core.errors import ArtifactError, ConfigError, DataError
from lissome.core.typed import from_json
from lissome.engine.decode import Sampling
from lissome.models.nested.text import TextCodec

_MOST_STOPS, _LONGEST_STOP = 16, 256  # each is looked for after every token
_COMPLETION_TOKENS = 16  # what the interface says when nobody asks for a number


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: One line: what was given, what is allowed.
        code: The interface's name for the reason.
        param: The field that is wrong.
    """

    def __init__(self, status: int, message: str, code: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def to_json(self) -> dict[str, Any]:
        """Return the error in the interface's words."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code or None}}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Fields of both kinds of requests; null is the same as absent."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    stream: bool | None = None
    stream_options: Mapping[str, Any] | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, Any] | None = None
    # Without effect on what is written.
    user: str | None = None
    metadata: Mapping[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream shall end with counts of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self) -> Sampling:
        """How tokens are chosen; without a seed, another text every time.

        Raises:
            RefusedError: When a number is out of range.
        """
        try:
            return Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=self.top_k or 0,
                seed=secrets.randbits(64) if self.seed is None else self.seed % (1 << 64),
            )
        except ConfigError as error:
            raise RefusedError(400, str(error), "invalid_value") from error

    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer.

        Raises:
            RefusedError: When there are too many, or one is empty or too long.
        """
        found = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        if len(found) > _MOST_STOPS or any(not 1 <= len(one) <= _LONGEST_STOP for one in found):
            raise RefusedError(
                400, f"stop takes up to {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} letters.", "invalid_value", "stop"
            )
        return found

    def most(self, room: int) -> int:
        """New tokens at most.

        Raises:
            RefusedError: When it is no positive number.
        """
        return _positive(self.max_tokens, "max_tokens", room)


@dataclass(frozen=True, kw_only=True)
class Completion(_Asked):
    """A text to continue: as text, or as token ids."""

    prompt: str | tuple[int, ...] | tuple[tuple[int, ...], ...] | tuple[str, ...]
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None
    best_of: int | None = None

    def tokens(self, codec: TextCodec) -> list[int]:
        """Return the prompt's tokens.

        Raises:
            RefusedError: When there is more than one prompt.
        """
        given = self.prompt
        if not isinstance(given, str) and given and not isinstance(given[0], int):  # a list of prompts
            if len(given) > 1:
                raise RefusedError(400, f"one request has one prompt, got {len(given)}.", "unsupported_value", "prompt")
            given = given[0]
        return codec.encode(given) if isinstance(given, str) else [int(one) for one in cast(tuple[int, ...], given)]

    def most(self, room: int) -> int:
        """New tokens at most: 16 when nobody says another number, as of the interface."""
        return min(super().most(room), room if self.max_tokens is not None else _COMPLETION_TOKENS)


@dataclass(frozen=True, kw_only=True)
class Chat(_Asked):
    """Messages to answer."""

    messages: tuple[Mapping[str, Any], ...]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None

    def tokens(self, codec: TextCodec) -> list[int]:
        """Return the tokens of the messages, up to where the answer begins.

        Raises:
            RefusedError: When a message has no role or no text, or the model's template does not take them.
        """
        if not self.messages:
            raise RefusedError(400, "messages must hold at least one.", "invalid_value", "messages")
        try:
            return codec.chat([_message(one, f"messages[{at}]") for at, one in enumerate(self.messages)])
        except DataError as error:
            raise RefusedError(400, str(error), "invalid_value", "messages") from error

    def most(self, room: int) -> int:
        """New tokens at most: what fits when nobody says a number."""
        return _positive(self.max_completion_tokens, "max_completion_tokens", super().most(room))


_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "presence_penalty": (0.0,), "frequency_penalty": (0.0,), "logit_bias": ({},),
    "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,), "tools": ((),),
    "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},),
}  # fmt: skip
"""What else than null fields of the interface may be that this server does not do."""

AnyRequest = TypeVar("AnyRequest", Completion, Chat)


def read(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Read a request.

    Args:
        kind: `Completion` or `Chat`.
        body: JSON.

    Raises:
        RefusedError: When it is not JSON, or a field is unknown, of another type, or asks for what is not done.
    """
    try:
        fields = json.loads(body)
        json.dumps(fields, ensure_ascii=False).encode()  # halves of characters, which JSON can say, are no text
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON: {str(error).splitlines()[0]:.80}.", "invalid_json") from error
    try:
        asked = from_json(kind, fields, "the request")
    except ArtifactError as error:
        raise RefusedError(
            400, str(error).replace("; the file is damaged or not of this kind", ""), "invalid"
        ) from error
    for name, allowed in _ONLY.items():
        value = getattr(asked, name, None)
        if value is not None and (value not in allowed or (name == "logprobs" and kind is Completion)):
            raise RefusedError(400, f"this server does not do {name}; leave it out.", "unsupported_parameter", name)
    return asked


def _positive(given: int | None, name: str, room: int) -> int:
    if given is not None and given < 1:
        raise RefusedError(400, f"{name} must be at least 1, got {given}.", "invalid_value", name)
    return room if given is None else min(given, room)


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str):
        raise RefusedError(400, f"{where} has no role.", "invalid_value", where)
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(parts) != len(content) or not all(isinstance(part, str) for part in parts):
            raise RefusedError(400, f"{where}: this model reads text alone.", "unsupported_value", where)
        content = "".join(map(str, parts))
    if not isinstance(content, str):
        raise RefusedError(400, f"{where} has no text.", "invalid_value", where)
    return {"role": "system" if role == "developer" else role, "content": content}
