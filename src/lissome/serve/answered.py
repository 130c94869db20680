"""Answers in the words of the OpenAI interface: whole ones, and the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lissome.engine.decode import Piece


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer that is being given.

    Attributes:
        chat: Whether it is a message, or a text.
        model: The model's name.
        prompt_tokens: Tokens that were read.
        usage: Whether a stream ends with counts of tokens.
        id: Its name.
        created: Seconds since 1970.
    """

    chat: bool
    model: str
    prompt_tokens: int
    usage: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        """Return the answer at once."""
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": last.finish}
        return {**self._head(stream=False), "choices": [choice], "usage": self._usage(last)}

    def first(self) -> Iterator[bytes]:
        """Yield the events before any text: who speaks, in a chat."""
        if self.chat:
            yield self._event([self._choice({"delta": {"role": "assistant", "content": ""}}, None)])

    def events(self, piece: Piece) -> Iterator[bytes]:
        """Yield the events of a piece; the last piece ends the stream."""
        if piece.text:
            said = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
            yield self._event([self._choice(said, None)])
        if piece.finish:
            yield self._event([self._choice({"delta": {}} if self.chat else {"text": ""}, piece.finish)])
            if self.usage:
                yield self._event([], usage=self._usage(piece))
            yield b"data: [DONE]\n\n"

    def _head(self, *, stream: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**self._head(stream=True), "choices": choices, **more})

    def _usage(self, last: Piece) -> dict[str, int]:
        total = self.prompt_tokens + last.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": last.tokens, "total_tokens": total}


def event(fields: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
