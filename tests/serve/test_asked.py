"""Requests are read strictly, and every refusal says which field is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.models.nested.text import TextCodec
from lissome.serve.asked import Chat, Completion, RefusedError, read
from tests.export.toys import byte_level

USER = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level().save_pretrained(folder)
    return TextCodec.of_folder(folder)


def chat(**fields: Any) -> Chat:
    return read(Chat, json.dumps({"messages": [USER], **fields}).encode())


def completion(**fields: Any) -> Completion:
    return read(Completion, json.dumps({"prompt": "hello", **fields}).encode())


def refusal(call: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call()
    assert caught.value.status == 400
    assert caught.value.to_json()["error"]["type"] == "invalid_request_error"
    return caught.value


def test_prompts(codec: TextCodec) -> None:
    assert completion().tokens(codec) == codec.encode("hello")
    assert completion(prompt=["hello"]).tokens(codec) == codec.encode("hello")
    assert completion(prompt=[5, 6]).tokens(codec) == [5, 6]
    assert completion(prompt=[]).tokens(codec) == []
    assert completion(prompt=[[5, 6]]).tokens(codec) == [5, 6]
    for several in (["a", "b"], [[5], [6]]):
        assert "one prompt" in str(refusal(lambda several=several: completion(prompt=several).tokens(codec)))
    assert chat().tokens(codec) == codec.chat([USER])
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert chat(messages=[{"role": "user", "content": parts}]).tokens(codec) == codec.chat([USER])
    system = [{"role": "developer", "content": "x", "name": "me"}]
    assert chat(messages=system).tokens(codec) == codec.chat([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "messages",
    [
        [], [{"content": "x"}], [{"role": "user"}], [{"role": 5, "content": "x"}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": ["x"]}],
    ],
)  # fmt: skip
def test_messages_that_are_none(codec: TextCodec, messages: Any) -> None:
    assert refusal(lambda: chat(messages=messages).tokens(codec)).param is not None


def test_how_many_tokens() -> None:
    assert completion().most(100) == 16
    assert completion().most(9) == 9
    assert completion(max_tokens=50).most(100) == 50
    assert completion(max_tokens=500).most(100) == 100
    assert chat().most(100) == 100
    assert chat(max_tokens=7).most(100) == 7
    assert chat(max_completion_tokens=7).most(100) == 7
    for wrong in (0, -1):
        assert refusal(lambda wrong=wrong: chat(max_tokens=wrong).most(9)).param == "max_tokens"


def test_sampling() -> None:
    found = chat(temperature=0.5, top_p=0.9, top_k=3, seed=-1).sampling()
    assert (found.temperature, found.top_p, found.top_k, found.seed) == (0.5, 0.9, 3, 2**64 - 1)
    assert chat(temperature=None).sampling().temperature == 1
    assert chat().sampling().seed != chat().sampling().seed
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_p": 2}, {"top_k": -1}):
        refusal(lambda wrong=wrong: chat(**wrong).sampling())


def test_stop_texts() -> None:
    assert chat(stop="x").stops() == ("x",)
    assert chat(stop=["x", "y"]).stops() == ("x", "y")
    assert chat().stops() == ()
    for wrong in ("", [""], ["x"] * 17, "x" * 300):
        assert refusal(lambda wrong=wrong: chat(stop=wrong).stops()).param == "stop"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2}, {"presence_penalty": 0.5}, {"logit_bias": {"5": 1}}, {"logprobs": True}, {"tools": [{"type": "f"}]},
        {"tool_choice": "required"}, {"response_format": {"type": "json_object"}},
    ],
)  # fmt: skip
def test_what_is_not_done_is_said(fields: dict[str, Any]) -> None:
    assert refusal(lambda: chat(**fields)).param == next(iter(fields))


def test_what_changes_nothing_is_taken() -> None:
    harmless = {
        "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False, "tools": [],
        "tool_choice": "none", "response_format": {"type": "text"}, "user": "me", "store": False, "metadata": {},
        "stream": None, "parallel_tool_calls": True,
    }  # fmt: skip
    assert chat(**harmless).stream is None
    assert refusal(lambda: completion(logprobs=0)).param == "logprobs"
    assert refusal(lambda: completion(echo=True)).param == "echo"


def test_a_mistyped_field_is_named() -> None:
    assert "did you mean 'temperature'" in str(refusal(lambda: chat(temprature=1)))
    assert "messages" in str(refusal(lambda: read(Chat, b"{}")))
    assert "temperature" in str(refusal(lambda: chat(temperature="hot")))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000, b'{"prompt": "x", "temperature": NaN}', b'{"prompt": null}',
     b'{"prompt": [1.5]}', b'{"prompt": [["x"]]}', b'{"prompt": "x", "seed": 1e999}', b"1" * 10_000,
     b'{"prompt": "\\ud800"}', b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "x", "stop": "\\udc00"}',
     b'{"prompt": [5, [6]]}', b'{"prompt": [true]}'],
)  # fmt: skip
def test_bodies_that_are_none(body: bytes) -> None:
    refusal(lambda: read(Completion, body))


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["prompt", "messages", "stop", "n", "role", "content", "stream"]), inner),
                    max_leaves=6))  # fmt: skip
def test_any_json_is_read_or_refused(codec: TextCodec, value: Any) -> None:
    for kind in (Completion, Chat):
        try:
            asked = read(kind, json.dumps(value).encode())
            asked.sampling()
            asked.stops()
            asked.most(9)
            asked.tokens(codec)
        except RefusedError as error:
            assert 400 <= error.status < 500
