"""Documents from files, and one line of help for every way a file can be wrong."""

import gzip
import json
from pathlib import Path

import pytest

from lissome.core.errors import DataError
from lissome.data.labelled import read_labelled
from lissome.data.sources import read_corpus, shipped_corpus
from lissome.testing.tokenizers import toy_tokenizer


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def texts(source: object, **options: object) -> list[str]:
    return [document.text for document in read_corpus(source, **options).documents]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xef\xbb\xbfFirst line\r\n\r\nSecond \xc3\xa9\n")
    assert texts(file) == ["First line\n\nSecond é\n"]


def test_gzip_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "one"}\n\n{"text": "two"}\n'))
    assert texts(file) == ["one", "two"]


def test_json_lines_name_their_line_and_repeated_texts_are_dropped(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two", "id": 7}, {"text": "one"})
    corpus = read_corpus(file)
    assert [document.name for document in corpus.documents] == [f"{file}:1", f"{file}:2"]


def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    file = write(tmp_path / "chat.jsonl", {"messages": turns}, {"prompt": "hi", "response": "no"})
    expected = ["<user> hi\n<assistant> yes\n", "<user> hi\n<assistant> no\n"]
    assert texts(file, tokenizer=toy_tokenizer(chat=True)) == expected


def test_no_name_is_not_this_folder() -> None:
    with pytest.raises(DataError, match="the name of the text is empty"):
        read_corpus("")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_value_is_not_json_lines(tmp_path: Path, name: str, indent: int | None) -> None:
    for value, words in (([{"text": "one"}, {"text": "two"}], "JSON array"), ({"text": "one"}, "JSON object")):
        file = tmp_path / name
        body = json.dumps(value, indent=indent).encode()
        file.write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
        if isinstance(value, dict) and indent is None:
            assert texts(file) == ["one"], "a line like any other"
            continue
        for read in (read_corpus, read_labelled):
            with pytest.raises(DataError, match=f"{name} is one {words}.*not JSON lines; write one object a line"):
                read(file)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', "a.jsonl:2: not JSON"),
        ("[1, 2]", "a.jsonl:2: expected an object, got list"),
        ('{"body": "x"}', "a.jsonl:2: no usable text (keys: body)"),
        ('{"text": 3}', "a.jsonl:2: no usable text (keys: text)"),
        ('{"text": "  "}', "a.jsonl:2: the text is empty"),
        ('{"text": "\\ud800"}', "a.jsonl:2: the text holds half a character"),
        ('{"messages": []}', "a.jsonl:2: no usable text (keys: messages)"),
        ('{"messages": [{"role": "user"}]}', 'a.jsonl:2: each message needs "role" and "content"'),
        ('{"prompt": "a", "response": "b"}', "a.jsonl:2: the tokenizer has no chat template"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError) as failure:
        read_corpus(file, tokenizer=toy_tokenizer())
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"fine\nfine\nbad \xff here", "a.txt:3: byte 0xff is not UTF-8"),
        (b"fine\nbad \x00 here", "a.txt:2: there is a NUL character"),
        (b"\x1f\x8bbroken", "cannot be read"),
        (b"\x1f\x8b\x08" + bytes(7) + b"broken bits", "cannot be read"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(DataError) as failure:
        read_corpus(file)
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_template_that_fails_is_one_line(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must\\nalternate') }}"
    file = write(tmp_path / "chat.jsonl", {"prompt": "a", "response": "b"})
    with pytest.raises(DataError, match=r"chat.jsonl:1: the tokenizer's chat template refused the messages \(roles"):
        read_corpus(file, tokenizer=tokenizer)


def test_a_typo_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"did you mean 'notes.txt'"):
        read_corpus(tmp_path / "note.txt")
    with pytest.raises(DataError, match="is a folder"):
        read_corpus(tmp_path)


def test_a_datasets_id_that_cannot_be_fetched_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the eval extra is not installed")

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"could not be read \(no route\); without a network, give a .txt"):
        read_corpus("org/name:config@train[:10]")


def test_rows_of_a_data_set_become_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the eval extra is not installed")
    asked = []

    def rows(*arguments: object, **options: object) -> list[dict[str, str]]:
        asked.append((arguments, options))
        return [{"text": "one"}, {"text": ""}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", rows)
    assert texts("wikitext:wikitext-2-raw-v1@test") == ["one", "two"]
    assert asked == [(("wikitext", "wikitext-2-raw-v1"), {"split": "test", "streaming": True})]


def test_the_shipped_text_has_three_disjoint_splits_and_no_notices() -> None:
    corpus = shipped_corpus()
    sources: dict[str, set[str]] = {"calibration": set(), "selection": set(), "test": set()}
    for document in corpus.documents:
        sources[str(document.split)].add(document.name)
        assert "gutenberg" not in document.text.lower()
    assert not sources["test"] & (sources["calibration"] | sources["selection"])
    assert not sources["calibration"] & sources["selection"]
    sizes = {name: sum(len(d.text) for d in corpus.documents if d.split == name) for name in sources}
    assert sizes["test"] > 100_000
    assert sizes["calibration"] > 500_000
    assert len({document.text for document in corpus.documents}) == len(corpus.documents)


def test_the_shipped_text_is_the_one_that_its_readme_describes() -> None:
    import hashlib

    folder = Path(__file__).parents[2] / "src" / "lissome" / "data" / "texts"
    file = folder / "english.jsonl.gz"
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (folder / "README.md").read_text()
    assert file.stat().st_size <= 400_000
