"""Text to tokens and back by the tokenizer of a folder, without transformers and torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.errors import ArtifactError, DataError
from lissome.core.files import read_json
from lissome.models.nested.template import ChatTemplate, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOKENIZER, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_GENERATION = "generation_config.json"
_HALF = "\N{REPLACEMENT CHARACTER}"
_PATIENCE = 8  # tokens that may be pieces of one character; more of them are no text at all
_PIECES = 4  # bytes of a character at most, and so the tokens of one
_LIMIT = 1 << 20  # bytes of a template


@dataclass(frozen=True, eq=False)
class TextCodec:
    """A tokenizer, how a chat is written, and which tokens end a text.

    Attributes:
        tokenizer: The tokenizer.
        template: How messages are written; None for a model that only continues text.
        ends: Tokens that end a text.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    ends: frozenset[int]

    @classmethod
    def of_folder(cls, folder: Path) -> TextCodec:
        """Read the tokenizer of a folder.

        Raises:
            DataError: When the folder has none.
            ArtifactError: When a file is damaged.
        """
        from tokenizers import Tokenizer

        path = folder / _TOKENIZER
        if not path.is_file():
            raise DataError(f"{folder} has no {_TOKENIZER}; export it again from a model with a fast tokenizer.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ArtifactError(f"{path} cannot be read ({error!s:.80}); restore or remake it.") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _mapping(folder / _CONFIG)
        words = {name: _word(value) for name, value in config.items() if name.endswith("_token") and _word(value)}
        source = _template_source(folder, config)
        template = None if source is None else ChatTemplate(source, words)
        return cls(tokenizer, template, _ends(folder, tokenizer, words))

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, with those that the model expects around it."""
        return list(self.tokenizer.encode(text).ids)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a chat, up to where the model answers.

        Raises:
            DataError: When the model has no chat template, or it does not take these messages.
        """
        if self.template is None:
            raise DataError("this model has no chat template; give it a text to continue instead.")
        return list(self.tokenizer.encode(self.template.text(messages), add_special_tokens=False).ids)

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of a text: as a user's message for a chat model, as it is for others."""
        return self.encode(text) if self.template is None else self.chat([{"role": "user", "content": text}])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """Text of tokens that come one at a time; a character that several tokens make appears with the last of them.

    Args:
        codec: The tokenizer.
        stop: Texts that end the whole: neither they nor anything after them appears.
        before: Tokens that the text follows. Tokenizers of SentencePiece's kind drop the space that a text begins with;
            after other tokens it is kept. A character that they begin appears with its last token.
    """

    def __init__(self, codec: TextCodec, stop: Collection[str] = (), before: Sequence[int] = ()) -> None:
        self._codec, self._stop = codec, tuple(stop)
        # The newest tokens, with those before them whose text they may lean on; and how many of them are shown.
        self._ids, self._seen = _leaned_on(codec, list(before)[-_PATIENCE:])
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; returns the text that is certain now."""
        self._ids.append(token)
        text = self._codec.decode(self._ids)
        if text.endswith(_HALF) and len(self._ids) - self._seen < _PATIENCE:
            return ""
        return self._pass(self._new(text))

    def end(self) -> str:
        """Return what was held back."""
        if self.stopped:
            return ""
        rest = self._pass(self._new(self._codec.decode(self._ids))) + self._held
        self._held = ""
        return rest

    def _new(self, text: str) -> str:
        """What the window's text has that was not shown; moves the window on."""
        new = text[len(self._codec.decode(self._ids[: self._seen])) :]
        if new:
            self._ids = self._ids[self._seen :]
        self._seen = len(self._ids)
        return new

    def _pass(self, new: str) -> str:
        """Let text pass up to a stop text, or to what may become one."""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        held = next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._stop)), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _leaned_on(codec: TextCodec, ids: list[int]) -> tuple[list[int], int]:
    """Drop tokens of a character whose beginning is not there, and count those before one whose end is not.

    Decoders of bytes make nothing of a whole row of characters when the first or the last one is not whole.
    """
    ends = range(len(ids), max(0, len(ids) - _PIECES), -1)
    for end, start in product(ends, range(min(_PIECES, len(ids)))):
        if start < end and _HALF not in codec.decode(ids[start:end]):
            return ids[start:], end - start
    return ids, len(ids)


def _mapping(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is not a JSON object; the file is damaged.")
    return found


def _word(value: Any) -> str:
    """A special token as text; tokenizers write it plainly or as an object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _template_source(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / _TEMPLATE
    if path.is_file():
        if path.stat().st_size > _LIMIT:
            raise ArtifactError(f"{path} is larger than {_LIMIT} bytes; it is no chat template.")
        return path.read_text(encoding="utf-8", errors="replace")
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next(
            (one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), 0
        )
    return found if isinstance(found, str) else None


def _ends(folder: Path, tokenizer: Tokenizer, words: dict[str, str]) -> frozenset[int]:
    """As `generate` of transformers: what the generation settings say; else the tokenizer's end of a text."""
    stated = _mapping(folder / _GENERATION).get("eos_token_id")
    listed = stated if isinstance(stated, list) else [stated]
    found = [token for token in listed if type(token) is int]
    if not found and "eos_token" in words:
        token = tokenizer.token_to_id(words["eos_token"])
        found = [] if token is None else [token]
    return frozenset(found)
