"""Codecs: what comes back, how many bytes it takes, and that nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lissome.core.errors import ConfigError, FederationError
from lissome.engine.federate.codec import AT, BITS, PACKED, SCALE, Codec

NUMBERS = ("fp32", "fp16", "bf16", "int8")


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = draw(st.lists(st.lists(st.integers(1, 7), max_size=3), min_size=1, max_size=4))
    found = {
        f"t{index}.weight": torch.randn(shape, generator=generator) * 10 ** draw(st.integers(-3, 3))
        for index, shape in enumerate(shapes)
    }
    if draw(st.booleans()):
        found["steps"] = torch.tensor([draw(st.integers(0, 9))])
    return found


codecs = st.builds(
    Codec,
    delta=st.booleans(),
    top=st.sampled_from([1.0, 0.5, 0.02]),
    number=st.sampled_from(NUMBERS),
    pack=st.booleans(),
)


@given(tensors(), codecs)
def test_round_trip(given: dict[str, Tensor], codec: Codec) -> None:
    base = {name: value * 0.9 for name, value in given.items()}
    wire = codec.encode(given, base)
    assert sum(one.numel() * one.element_size() for one in wire.values()) == codec.payload(given)
    assert {name: (one.shape, one.dtype) for name, one in wire.items()} == {
        name: (one.shape, one.dtype) for name, one in codec.spec(given).items()
    }
    found = codec.decode(wire, {name: value.to("meta") for name, value in given.items()}, base)
    assert Codec.parse(str(codec)) == codec
    for name, value in given.items():
        assert found[name].dtype == value.dtype
        if not value.is_floating_point():
            assert torch.equal(found[name], value)
            continue
        start = base[name] if codec.delta else torch.zeros_like(value)
        change, got = value - start, found[name] - start
        allowed = {"fp32": 1e-6, "fp16": 2**-10, "bf16": 2**-7, "int8": 1 / 127}[codec.number]
        kept = got != 0 if codec.top < 1 else torch.ones_like(value, dtype=torch.bool)
        scale = change.abs().max() if codec.number == "int8" else change.abs()
        assert ((got - change).abs() <= allowed * scale + 1e-6 * value.abs() + 1e-7)[kept].all()
        if codec.top < 1 and codec.number == "fp32":
            left = change[~kept].abs()
            assert not left.numel() or left.max() <= change[kept].abs().min() + 1e-6 * value.abs().max()


def test_raw_is_exact_and_shares_nothing() -> None:
    given = {"a": torch.randn(3, 4), "b": torch.tensor(2.5)}
    wire = Codec().encode(given)
    found = Codec().decode(wire, given)
    for name, value in given.items():
        assert torch.equal(found[name], value)
        assert found[name].data_ptr() != wire[name].data_ptr() != value.data_ptr()


def test_bytes_are_what_the_words_promise() -> None:
    given = {"a": torch.randn(100, 40)}
    assert Codec.parse("raw").payload(given) == 16_000
    assert Codec.parse("fp16").payload(given) == Codec.parse("bf16").payload(given) == 8_000
    assert Codec.parse("int8").payload(given) == 4_000 + 400
    assert Codec.parse("top=1%").payload(given) == 40 * (4 + 4), "indices are shorter than bits"
    assert Codec.parse("top=50%+int8").payload(given) == 2_000 + 500 + 4, "bits are shorter than indices"
    assert Codec.parse("pack").spec(given).keys() == {PACKED}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int4", "unknown word 'int4'; did you mean 'int8'"), ("fp16+int8", "says number twice"),
        ("top=0%", "above 0"), ("top=130%", "at most 100%"), ("top=..", "above 0"), ("", "unknown word"),
        ("feedback", "delta"),
    ],
)  # fmt: skip
def test_words_that_are_not_understood(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Codec.parse(text)


def test_what_was_not_agreed_is_refused() -> None:
    codec, given = Codec.parse("top=10%+int8"), {"a": torch.arange(100.0)}
    wire = codec.encode(given)
    assert wire.keys() == {"a", "a" + SCALE, "a" + BITS}
    for changed, words in (
        ({**wire, "b": torch.ones(1)}, "unknown tensor 'b'"),
        ({name: value for name, value in wire.items() if name != "a" + SCALE}, "missing"),
        ({**wire, "a": wire["a"].float()}, "float32.* but int8.* was agreed"),
        ({**wire, "a": wire["a"][:-1]}, r"int8\[9\]"),
        ({**wire, "a" + BITS: torch.zeros_like(wire["a" + BITS])}, "places of 'a'"),
    ):
        with pytest.raises(FederationError, match=words):
            codec.decode(changed, given)
    sparse = Codec.parse("top=1%")
    wire = sparse.encode({"a": torch.arange(1000.0)})
    for places in ([-1, *range(9)], [*range(9), 1000], [0, 0, *range(1, 9)]):
        with pytest.raises(FederationError, match="ascending"):
            sparse.decode({**wire, "a" + AT: torch.tensor(places, dtype=torch.int32)}, {"a": torch.empty(1000)})
    with pytest.raises(ConfigError, match="delta"):
        Codec.parse("delta").encode({"a": torch.ones(2)}, {"a": torch.ones(3)})


def test_of_equal_sizes_the_first_go() -> None:
    wire = Codec.parse("top=25%").encode({"a": torch.tensor([1.0, -1.0, 1.0, -1.0])})
    assert wire["a"].tolist() == [1.0]
    assert wire["a" + BITS].tolist() == [1]
