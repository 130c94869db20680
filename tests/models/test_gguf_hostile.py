"""GGUF import: damaged and hostile files end in one line, use little memory and leave nothing behind."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import pytest
from gguf.constants import GGUFValueType as Value
from hypothesis import given, settings

from lissome.core.errors import ArtifactError, LissomeError
from lissome.core.files import cache_dir
from lissome.models.gguf import convert
from lissome.models.gguf.header import read_header
from tests.models.gguf_toys import module_of, write_gguf

HUGE = (1 << 31, 1 << 40, 1 << 62, (1 << 64) - 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "toy.gguf"
    write_gguf(path, module=module_of("llama", num_hidden_layers=1))
    return path.read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))


def leftovers() -> list[str]:
    """What lies in the cache of converted files, but for the empty files that two processes lock."""
    return [left.name for left in (cache_dir() / "converted").glob("*") if left.suffix != ".lock"]


def refused(path: Path, content: bytes, match: str | None = None) -> None:
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=match) as caught:
        convert(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} is not a usable GGUF file: ")
    assert message.endswith("Fetch or copy the file again.")
    assert not leftovers()


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def start(tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def string_entry(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", Value.STRING) + text(value)


def array_entry(key: str, kind: Value, count: int, content: bytes = b"") -> bytes:
    return text(key) + struct.pack("<IIQ", Value.ARRAY, kind, count) + content


def tensor_row(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it is empty"),
        (b"GGUF", "only 4 bytes"),
        (b"\x00" * 64, "letters GGUF"),
        (b"PK\x03\x04" + b"x" * 400, "letters GGUF"),
        (start(version=1), "version is 1"),
        (start(version=9), "version is 9"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (start(), "names no architecture"),
        (
            start(entries=1) + text("general.architecture") + struct.pack("<II", Value.UINT32, 7),
            "names no architecture",
        ),
        (start(entries=2) + string_entry("a", "b") * 2, "'a' occurs twice"),
        (start(entries=1) + text("a") + struct.pack("<II", 99, 0), "type 99 is unknown"),
        (start(entries=1) + array_entry("a", Value.ARRAY, 1, b"\x00" * 32), "array of arrays"),
        (start(entries=1) + struct.pack("<Q", 2) + b"\xff\xfe" + b"\x00" * 12, "not UTF-8"),
        (start(tensors=1) + tensor_row("w", ()) + b"\x00" * 64, "0 dimensions"),
        (start(tensors=1) + tensor_row("w", (1,) * 5) + b"\x00" * 64, "5 dimensions"),
        (start(tensors=1) + tensor_row("w", (0, 4)) + b"\x00" * 64, "impossible shape"),
        (start(tensors=1) + tensor_row("w", (31,), kind=2) + b"\x00" * 64, "impossible shape"),
        (start(tensors=1) + tensor_row("w", (4,), kind=77) + b"\x00" * 64, "unknown type 77"),
        (start(tensors=2) + tensor_row("w", (4,)) * 2 + b"\x00" * 64, "'w' occurs twice"),
        (start(tensors=2) + tensor_row("v", (8,)) + tensor_row("w", (8,)) + b"\x00" * 60, "overlap"),
        (start(entries=1) + text("general.alignment") + struct.pack("<II", Value.UINT32, 3), "power of two"),
        (start(entries=1) + text("general.alignment") + struct.pack("<II", Value.UINT32, 0), "power of two"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_gguf(content, match, tmp_path):
    refused(tmp_path / "bad.gguf", content, match)


@pytest.mark.parametrize("huge", HUGE)
def test_huge_claims_cost_no_memory(huge, tmp_path):
    """Every count and length of the format, claimed to be enormous in a file of a few bytes."""
    contents = [
        b"GGUF" + struct.pack("<IQQ", 3, huge, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, huge),
        start(entries=1) + struct.pack("<Q", huge),
        start(entries=1) + text("a") + struct.pack("<IQ", Value.STRING, huge),
        *(start(entries=1) + array_entry("a", kind, huge) for kind in Value if kind is not Value.ARRAY),
        start(tensors=1) + tensor_row("w", (huge,)) + b"\x00" * 64,
        start(tensors=1) + tensor_row("w", (huge, huge, huge, huge)) + b"\x00" * 64,
        start(tensors=1) + tensor_row("w", (8,), offset=huge) + b"\x00" * 64,
    ]
    tracemalloc.start()
    try:
        for content in contents:
            (tmp_path / "huge.gguf").write_bytes(content)
            with pytest.raises(ArtifactError):
                read_header(tmp_path / "huge.gguf")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "feed_forward_length"])
@pytest.mark.parametrize("value", [0, (1 << 31) - 1, (1 << 32) - 1])
def test_huge_sizes_of_the_model_are_refused(key, value, whole, tmp_path):
    name = text(f"llama.{key}") + struct.pack("<I", Value.UINT32)
    at = whole.index(name) + len(name)
    refused(tmp_path / "bad.gguf", whole[:at] + struct.pack("<I", value) + whole[at + 4 :])


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_files_are_refused(share, whole, tmp_path):
    refused(tmp_path / "cut.gguf", whole[: int(len(whole) * share)])


def test_missing_files_are_refused(tmp_path):
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ArtifactError, match="is not a file; give the path"):
            convert(path)


@settings(max_examples=150)
@given(data=st.data())
def test_any_change_of_the_header_is_survived(data, whole, tmp_path):
    """Bytes changed, removed or put in: a folder or one of our errors, never a crash, never half a folder."""
    end = whole.index(b"output_norm.weight") + 64
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end))
        match data.draw(st.sampled_from(["set", "word", "cut", "put"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "word":
                content[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from((0, 1, 4097, *HUGE))))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 9))]
            case "put":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    path = tmp_path / "changed.gguf"
    path.write_bytes(content)
    try:
        folder = convert(path)
    except LissomeError as error:
        assert "\n" not in str(error)
    else:
        assert (folder / "source.json").exists()
    assert not [name for name in leftovers() if name.startswith(".")]
