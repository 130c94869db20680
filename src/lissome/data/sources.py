"""Where text comes from: a text file, JSON lines, a `datasets` id, or the text that ships with lissome."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from lissome.core.errors import DataError
from lissome.core.optional import optional_import
from lissome.data.hub import asked_once, guessed

SplitName = Literal["calibration", "selection", "test"]
SHIPPED = "shipped"
"""What the shipped text is called in tables and manifests."""

_JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})
_DATASET_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[\w\[\]:%+-]+))?")
_RECORD = '{"text": …}, {"messages": [{"role": …, "content": …}, …]} or {"prompt": …, "response": …}'
_DATASET_LIMIT = 20_000  # documents read from a data set: far beyond what any split takes, never a terabyte

Template = Callable[[list[dict[str, str]]], str]
"""Renders chat messages as the text that the model was trained on."""


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: Its characters, never empty.
        name: Where it stands, e.g. ``"notes.jsonl:3"``.
        split: The split it was made for, when its source says so (the shipped text does).
        owner: Who it belongs to, when its record says so (``"client"``).
    """

    text: str
    name: str
    split: SplitName | None = None
    owner: str = ""


@dataclass(frozen=True)
class Corpus:
    """Documents of one source.

    Attributes:
        name: What the user called it.
        documents: In the order of the source, each text once.
    """

    name: str
    documents: tuple[Document, ...]

    @property
    def sha256(self) -> str:
        """Hash of all texts in order, hexadecimal."""
        digest = hashlib.sha256()
        for document in self.documents:
            body = document.text.encode()
            digest.update(len(body).to_bytes(8, "little") + body)
        return digest.hexdigest()

    def some(self, indices: Sequence[int]) -> Corpus:
        """Return the documents at some positions."""
        return Corpus(self.name, tuple(self.documents[at] for at in indices))


def check_source(source: object) -> None:
    """Refuse data that lie in memory.

    Raises:
        DataError: Says how to write them down.
    """
    if not isinstance(source, str | Path | None):
        raise DataError(
            f"data must be the path of a file or a folder, or a datasets id, got {type(source).__name__}; write it "
            "down first (images: numpy.savez(file, image=…, label=…); texts: JSON lines)."
        )


def read_corpus(source: str | Path | None = None, *, tokenizer: Any = None) -> Corpus:
    """Read text from wherever it is.

    Args:
        source: None or ``"shipped"`` for the text that ships with lissome; a text file (one document); a ``.jsonl``
            file (one document a line; ``.gz`` of both is read too); or a `datasets` id, ``NAME[:CONFIG][@SPLIT]``.
        tokenizer: Its chat template renders records that hold messages instead of text.

    Raises:
        DataError: When the source does not exist, is empty, is not UTF-8, or a line cannot be used; names the line.
        MissingExtraError: When a `datasets` id is given and the library is not installed.
    """
    check_source(source)
    if source is None or source == SHIPPED:
        return shipped_corpus()
    if not str(source).strip():
        raise DataError("the name of the text is empty; give a text file, JSON lines, or a datasets id.")
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{path} is a folder; give one text file or one JSON-lines file.")
    if path.is_file():
        return _read_file(path, _chat_template(tokenizer))
    match = _DATASET_ID.fullmatch(str(source))
    if match is None or not _could_be_dataset(str(source)):
        raise DataError(_no_such_file(path))
    return _read_dataset(match, _chat_template(tokenizer))


def shipped_corpus() -> Corpus:
    """Return the shipped public-domain text, each document with its split (see `texts/README.md`)."""
    file = resources.files("lissome.data") / "texts" / "english.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    records = (json.loads(line) for line in lines)
    return Corpus(SHIPPED, tuple(Document(r["text"], f"{SHIPPED}/{r['source']}", r["split"]) for r in records))


def _read_file(path: Path, template: Template) -> Corpus:
    text = _decode(path)
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with text in it.")
    if _kind(path) not in _JSON_LINES:
        return Corpus(str(path), (Document(text, str(path)),))
    refuse_whole_json(text, str(path), _RECORD)
    records = ((f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return Corpus(str(path), _documents(((where, _parse(where, line)) for where, line in records), template))


def refuse_whole_json(text: str, name: str, record: str) -> None:
    """Refuse a file that is one JSON value, such as an array of records, where JSON lines are wanted.

    Args:
        text: The whole file.
        name: How to call it in an error.
        record: What each line must be.

    Raises:
        DataError: Says how to turn an array into lines.
    """
    first = text.strip().split("\n", 1)[0].strip()
    if not first.startswith("[") and first != "{":
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):  # damaged lines: whoever reads them says which
        return
    kind = "array" if isinstance(whole, list) else "object over several lines"
    turn = "jq -c '.[]'" if isinstance(whole, list) else "jq -c ."
    raise DataError(
        f"{name} is one JSON {kind}, not JSON lines; write one object a line, {record} ({turn} turns it into that)."
    )


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def _decode(path: Path) -> str:
    """Read UTF-8, plain or gzip; say which line is not."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); check the file, or copy it again.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{data.count(10, 0, error.start) + 1}: byte {data[error.start]:#04x} is not UTF-8; "
            "save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: there is a NUL character, so this is no text file; give UTF-8 text.")
    return text.replace("\r\n", "\n")


def _parse(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not JSON ({_first_line(error)}); each line must be one object, {_RECORD}."
        ) from error


def _documents(records: Iterable[tuple[str, Any]], template: Template) -> tuple[Document, ...]:
    """Turn records into documents, dropping repeated texts: one must not stand in two splits."""
    texts: dict[str, Document] = {}
    for where, record in records:
        text = _text_of(where, record, template)
        owner = record.get("client", "") if isinstance(record, Mapping) else ""
        texts.setdefault(text, Document(text, where, owner=str(owner) if isinstance(owner, str | int) else ""))
    return tuple(texts.values())


def _text_of(where: str, record: Any, template: Template) -> str:
    match record:
        case {"text": str(text)}:
            pass
        case {"messages": [_, *_] as messages}:
            text = _render(where, messages, template)
        case {"prompt": str(prompt), "response": str(response)}:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = _render(where, turns, template)
        case Mapping():
            keys = ", ".join(sorted(map(str, record))) or "none"
            raise DataError(f"{where}: no usable text (keys: {keys}); write {_RECORD}.")
        case _:
            raise DataError(f"{where}: expected an object, got {type(record).__name__}; write {_RECORD}.")
    if not text.strip():
        raise DataError(f"{where}: the text is empty; remove the record or fill it.")
    if halved(text):
        raise DataError(f"{where}: the text holds half a character (a lone surrogate); repair the record.")
    return text


def halved(text: str) -> bool:
    """Whether a text holds half a character (a lone surrogate), which JSON can write and UTF-8 cannot."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


def _render(where: str, messages: list[Any], template: Template) -> str:
    for message in messages:
        match message:
            case {"role": str(), "content": str()}:
                continue
        raise DataError(f'{where}: each message needs "role" and "content" as text, got {str(message)[:60]}.')
    try:
        return template(messages)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # a template is a program of the model's maker and may raise anything
        raise DataError(
            f"{where}: the tokenizer's chat template refused the messages ({_first_line(error)})."
        ) from error


def _chat_template(tokenizer: Any) -> Template:
    """Return a function that renders messages as the tokenizer's chat template does."""

    def render(messages: list[dict[str, str]]) -> str:
        if getattr(tokenizer, "chat_template", None) is None:
            raise DataError('the tokenizer has no chat template; give records with "text" instead of messages.')
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    return render


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _could_be_dataset(source: str) -> bool:
    """Whether a name that is no file may be meant as a `datasets` id: no path, no file extension."""
    endings = (".txt", ".md", ".gz", *_JSON_LINES)
    return not source.startswith((".", "/", "~")) and not source.lower().endswith(endings)


def _no_such_file(path: Path) -> str:
    hint = guessed(path)
    return f"no text file {str(path)!r};{hint} give a .txt or .jsonl file, or a datasets id NAME[:CONFIG][@SPLIT]."


def _read_dataset(match: re.Match[str], template: Template) -> Corpus:
    name, split = match[0], match["split"] or "train"
    datasets = optional_import("datasets", extra="eval")
    try:
        with asked_once():
            rows = datasets.load_dataset(match["id"], match["config"], split=split, streaming=True)
            documents = _documents(_numbered(name, rows), template)
    except DataError:
        raise
    except Exception as error:  # the hub, the network and parsers raise a hundred kinds
        reason = _first_line(error)
        raise DataError(
            f"{name!r} is no file, and as a datasets id it could not be read ({reason});{guessed(Path(name))} without "
            "a network, give a .txt or .jsonl file."
        ) from error
    if not documents:
        raise DataError(f"{name}: the data set has no rows; choose another split with NAME@SPLIT.")
    return Corpus(name, documents)


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, row in zip(range(_DATASET_LIMIT), rows, strict=False):
        if not (isinstance(row, Mapping) and row.get("text") == ""):  # WikiText marks paragraphs by empty rows
            yield f"{name}:{number + 1}", row
