"""Texts and chats become the tokens that transformers makes of them, and come back piece by piece without a loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from lissome.core.errors import ArtifactError, DataError
from lissome.models.nested.template import ChatTemplate
from lissome.models.nested.text import TextCodec, TextStream
from lissome.testing.tokenizers import toy_tokenizer
from tests.export.toys import byte_level, sentence_piece

KINDS = {
    "bytes": byte_level(),
    "pieces": sentence_piece(),
    "pieces, first space": sentence_piece(prefix=True),
    "characters, begin": toy_tokenizer(bos=True, chat=True),
}
TEXTS = ["hello the world", " two  spaces\n", "ünïcödé 日本 🙂", "", "<s>hello</s> <think>", "12 hell"]
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module", params=KINDS)
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedTokenizerFast, TextCodec]:
    folder = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param].save_pretrained(folder)
    return KINDS[request.param], TextCodec.of_folder(folder)


def test_as_transformers(both: tuple[PreTrainedTokenizerFast, TextCodec]) -> None:
    theirs, ours = both
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.template is None) == (theirs.chat_template is None)
    if ours.template is None:
        with pytest.raises(DataError, match="no chat template"):
            ours.chat(CHAT)
        assert ours.prompt("hello") == ours.encode("hello")
    else:
        wanted = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        assert ours.chat(CHAT) == theirs(wanted, add_special_tokens=False)["input_ids"]
        assert ours.prompt("x") == ours.chat([{"role": "user", "content": "x"}])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_are_the_whole(both: tuple[PreTrainedTokenizerFast, TextCodec], data: Any) -> None:
    codec = both[1]
    text = data.draw(st.text(max_size=12))
    size = codec.tokenizer.get_vocab_size()
    ids = data.draw(st.sampled_from([codec.encode(text), data.draw(st.lists(st.integers(0, size - 1), max_size=14))]))
    stream, whole = TextStream(codec), codec.decode(ids)
    shown = [stream.add(token) for token in ids]
    found = "".join(shown) + stream.end()
    # What is no text at all is shown as such sooner or later; where it is one, not a letter may differ.
    assert found == whole or "\N{REPLACEMENT CHARACTER}" in whole
    stop = data.draw(st.text(min_size=1, max_size=3))
    stream = TextStream(codec, (stop, "never, ever"))
    cut = ""
    for token in ids:
        cut += stream.add(token)
        if stream.stopped:
            break
    cut += stream.end()
    assert cut == found.split(stop)[0]
    assert stream.stopped == (stop in found)


def test_a_character_of_several_tokens_comes_whole(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path)
    codec = TextCodec.of_folder(tmp_path)
    stream = TextStream(codec)
    assert [stream.add(token) for token in codec.encode("a🙂b")] == ["a", "", "", "", "🙂", "b"]
    half = codec.encode("🙂")[:3]
    stream = TextStream(codec)
    assert "".join(stream.add(token) for token in half) == ""
    assert stream.end() == codec.decode(half)


def test_the_space_behind_a_prompt_is_kept(tmp_path: Path) -> None:
    tokenizer = sentence_piece(prefix=True)
    core = tokenizer.backend_tokenizer
    core.decoder = decoders.Sequence([core.decoder, decoders.Strip(" ", 1, 0)])  # as Llama-2 and Phi-3 have it
    tokenizer.save_pretrained(tmp_path)
    codec = TextCodec.of_folder(tmp_path)
    ids = codec.encode("hello the hello")
    assert codec.decode(ids) == "hello the hello"
    cut = len(codec.encode("hello"))
    for before, wanted in (((), "the hello"), (ids[:cut], " the hello")):
        stream = TextStream(codec, before=before)
        assert "".join([*(stream.add(token) for token in ids[cut:]), stream.end()]) == wanted


@pytest.mark.parametrize("kind", ["bytes", "pieces", "pieces, first space"])
def test_no_character_is_lost_behind_a_prompt(tmp_path: Path, kind: str) -> None:
    KINDS[kind].save_pretrained(tmp_path)
    codec = TextCodec.of_folder(tmp_path)
    ids = codec.encode("hello 日本日本日本 the")
    for cut in range(3, len(ids)):
        stream = TextStream(codec, before=ids[:cut])
        found = "".join([*(stream.add(token) for token in ids[cut:]), stream.end()])
        whole = next(end for end in range(cut, 0, -1) if "\N{REPLACEMENT CHARACTER}" not in codec.decode(ids[:end]))
        assert codec.decode(ids[:whole]) + found == codec.decode(ids), "a character begun by the prompt comes whole"


def test_a_stop_text_across_tokens(tmp_path: Path) -> None:
    toy_tokenizer().save_pretrained(tmp_path)
    codec = TextCodec.of_folder(tmp_path)
    stream = TextStream(codec, ("end", "e!"))
    shown = [stream.add(token) for token in codec.encode("an e en end")]
    assert shown[:10] == ["a", "n", " ", "", "e ", "", "", "en ", "", ""]
    assert stream.stopped
    assert stream.end() == ""
    stream = TextStream(codec, ("end",))
    assert "".join([*(stream.add(token) for token in codec.encode("the en")), stream.end()]) == "the en"


TEMPLATES = {
    "{% for m in messages %}{{ m.content | tojson }}{% if loop.first %}{% continue %}{% endif %};{% endfor %}": '"a<b"',
    "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ bos_token }}": "2<s>",
    "{{ dict(a=1).a }}{{ strftime_now('%Y')|length }}": "14",
    "{% if add_generation_prompt %}\n  go\n{% endif %}": "  go\n",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}": "a<b;",
}


@pytest.mark.parametrize("source", TEMPLATES)
def test_what_templates_use(source: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template.text([{"role": "user", "content": "a<b"}]) == TEMPLATES[source]


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].nothing.nothing }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns['__class__'] = 1 %}",
        "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
        "{{ dict.__base__ }}{{ dict.mro() }}",
        "{{ 1 / 0 }}",
        "{{ messages[5:'a'] }}",
        "{% generation %}{{ messages }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
    ids=range(11),
)
def test_templates_that_go_too_far(source: str) -> None:
    with pytest.raises((DataError, ArtifactError)):
        ChatTemplate(source, {}).text([{"role": "user", "content": "x"}])


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        TextCodec.of_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        TextCodec.of_folder(tmp_path)
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ArtifactError, match="template cannot be read"):
        TextCodec.of_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("x" * (1 << 21))
    with pytest.raises(ArtifactError, match="larger than"):
        TextCodec.of_folder(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a JSON object"):
        TextCodec.of_folder(tmp_path)


def test_what_ends_a_text(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path)
    assert TextCodec.of_folder(tmp_path).ends == {2}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert TextCodec.of_folder(tmp_path).ends == {1, 7}


def test_several_templates_by_name(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    listed = [{"name": "tools", "template": "no"}, {"name": "default", "template": "hell"}]
    path.write_text(json.dumps(config | {"chat_template": listed}))
    codec = TextCodec.of_folder(tmp_path)
    assert codec.chat([]) == codec.encode("hell")


def test_no_torch_and_no_transformers(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lissome.models.nested.text import TextCodec;"
        f"TextCodec.of_folder(Path({str(tmp_path)!r})).prompt('hello');"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
