"""Sequences, trees, ranges of layers, threads, instruction sets: the same bits of a token wherever it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lissome.core.errors import ConfigError
from lissome.engine.decode.decoder import Cancelled, Decoder
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from lissome.ops.nested import layout_named
from tests.export.toys import model_of

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

IDS = np.random.default_rng(0).integers(0, 320, 24).tolist()
LEVELS = [level.name for level in native.choice().levels if level.usable]


@pytest.fixture(scope="module", params=["3+1", "3+1/kmeans"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = layout_named(request.param)
    return make(model_of("gemma2"), tmp_path_factory.mktemp("nested") / "toy.safetensors", layout=layout)


def alone(path: Path, ids: list[int], **settings: Any) -> np.ndarray:
    """Logits of every token of one sequence."""
    return Decoder.open(path, **settings).forward(ids, range(len(ids)), wanted=range(len(ids)))


@pytest.mark.parametrize("activations", ["f32", "int8"])
@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_no_split_and_no_thread_changes_a_bit(path: Path, activations: Any, kv: Any) -> None:
    whole = alone(path, IDS, activations=activations, kv=kv, threads=1)
    assert np.isfinite(whole).all()
    for threads, sizes in [(2, [24]), (3, [1] * 24), (1, [9, 1, 14]), (7, [17, 7])]:
        decoder, rows, at = Decoder.open(path, activations=activations, kv=kv, threads=threads), [], 0
        for size in sizes:
            rows.append(decoder.forward(IDS[at : at + size], range(at, at + size), wanted=range(size)))
            at += size
        assert np.array_equal(np.concatenate(rows), whole)


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_long_prompts_in_pieces_and_in_any_order(path: Path, kv: Any) -> None:
    """More tokens than go through the layers together; out of order, they may see later ones of their batch."""
    rng = np.random.default_rng(1)
    ids, order = rng.integers(0, 320, 300), rng.permutation(300)
    whole = alone(path, ids.tolist(), kv=kv)
    decoder = Decoder.open(path, kv=kv)
    pieces = [
        decoder.forward(ids[at:end], range(at, end), wanted=range(end - at)) for at, end in [(0, 130), (130, 300)]
    ]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(Decoder.open(path, kv=kv).forward(ids[order], order, wanted=range(300)), whole[order])


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_every_instruction_set_gives_the_same_bits(path: Path, activations: Any) -> None:
    found = []
    for level in LEVELS:
        with native.using(level):
            found.append(alone(path, IDS, activations=activations))
    assert all(np.array_equal(one, found[0]) for one in found)


def test_mapped_and_resident_weights_are_the_same(path: Path) -> None:
    assert np.array_equal(alone(path, IDS), alone(path, IDS, resident=False))


def test_ranges_of_layers_make_the_whole(path: Path) -> None:
    first, second = Decoder.open(path, layers=(0, 2)), Decoder.open(path, layers=(2, 3))
    assert first.width == first.spec.hidden
    hidden = first.forward(IDS, range(24), wanted=range(24))
    assert np.array_equal(second.forward(hidden, range(24), wanted=range(24)), alone(path, IDS))
    with pytest.raises(ConfigError, match="hidden states"):
        second.forward(IDS, range(24))


def test_sequences_know_nothing_of_each_other(path: Path) -> None:
    other = IDS[::-1]
    decoder = Decoder.open(path)
    mixed = [token for pair in zip(IDS, other, strict=True) for token in pair]
    rows = decoder.forward(mixed, np.repeat(range(24), 2), [0, 5] * 24, wanted=range(48))
    assert np.array_equal(rows[::2], alone(path, IDS))
    assert np.array_equal(rows[1::2], alone(path, other))
    decoder.seq_rm(5)
    assert (decoder.seq_last(0), decoder.seq_last(5)) == (23, -1)


def test_a_shared_prefix_is_not_computed_twice(path: Path) -> None:
    decoder = Decoder.open(path, cells=24 + 8)
    decoder.forward(IDS, range(24))
    decoder.seq_cp(0, 1, 0, 16)
    rows = decoder.forward(IDS[:8], range(16, 24), 1, wanted=range(8))
    assert np.array_equal(rows, alone(path, IDS[:16] + IDS[:8])[16:])
    with pytest.raises(ConfigError, match="32 of 32"):
        decoder.forward([1], [24], 1)
    decoder.seq_rm(0)  # cells of the prefix stay, because sequence 1 has them
    again = decoder.forward([3], [24], 1)
    assert np.array_equal(again, alone(path, [*IDS[:16], *IDS[:8], 3])[-1:])


def test_a_tree_of_guesses_in_one_batch(path: Path) -> None:
    decoder = Decoder.open(path)
    decoder.forward(IDS[:6], range(6), [[0, 1]] * 6)
    # 6 is common to both branches, then 7a and 7b
    rows = decoder.forward([10, 20, 30], [6, 7, 7], [[0, 1], 0, 1], wanted=[0, 1, 2])
    assert np.array_equal(rows[1], alone(path, [*IDS[:6], 10, 20])[-1])
    assert np.array_equal(rows[2], alone(path, [*IDS[:6], 10, 30])[-1])
    decoder.seq_rm(0, 7)
    decoder.seq_cp(1, 0, 7)  # the second guess was right
    assert np.array_equal(decoder.forward([40], [8], 0)[0], alone(path, [*IDS[:6], 10, 30, 40])[-1])


def test_cells_that_are_used_again_give_the_same_bits(path: Path) -> None:
    decoder = Decoder.open(path, cells=24)
    decoder.forward(IDS[:12], range(12), 3)
    decoder.forward(IDS[:5], range(5), 0)
    decoder.seq_rm(3, 0, 6)
    decoder.seq_rm(3)
    last = None
    for at in range(5):
        decoder.seq_rm(0, at)
        last = decoder.forward(IDS[at:5], range(at, 5), 0)
    assert last is not None
    assert np.array_equal(last, alone(path, IDS[:5])[-1:])


def test_a_cancelled_forward_leaves_nothing(path: Path) -> None:
    decoder = Decoder.open(path)
    decoder.forward(IDS[:4], range(4))
    decoder.cancel()
    with pytest.raises(Cancelled):
        decoder.forward(IDS[4:], range(4, 24))
    assert decoder.seq_last(0) == 3
    assert np.array_equal(decoder.forward(IDS[4:], range(4, 24)), alone(path, IDS)[-1:])


@pytest.mark.parametrize(
    ("tokens", "positions", "sequences", "precision", "message"),
    [
        ([320], [0], 0, 4, "not in the vocabulary"),
        ([-1], [0], 0, 4, "not in the vocabulary"),
        ([1], [-1], 0, 4, "negative"),
        ([1], [0], 64, 4, "sequences are 0 to 63"),
        ([1], [0], [[]], 4, "belongs to a sequence"),
        ([1], [0], 0, 2, "not read at 2"),
        ([1, 2], [0], 0, 4, "1 positions and 2 tokens"),
        ([], [], 0, 4, "at least one token"),
        ([(1 << 32) + 1], [0], 0, 4, "tokens must be .* of 32 bits"),
        (np.array([(1 << 32) + 1]), [0], 0, 4, "tokens must be .* of 32 bits"),
        ([1.5], [0], 0, 4, "tokens must be .* whole numbers"),
        ([1], np.array([1 << 32]), 0, 4, "positions must be .* of 32 bits"),
        ([1], [[0]], 0, 4, "positions must be a list"),
    ],
)
def test_refusals(path: Path, tokens: Any, positions: Any, sequences: Any, precision: int, message: str) -> None:
    decoder = Decoder.open(path, cells=8)
    with pytest.raises(ConfigError, match=message):
        decoder.forward(tokens, positions, sequences, precision, wanted=[0] if positions else [])
    assert np.isfinite(decoder.forward([1], [0])).all()


def test_arrays_are_what_lists_are(path: Path) -> None:
    wanted = Decoder.open(path).forward([1, 2], [0, 0], [0, 1], wanted=[0, 1])
    for kind in (np.int64, np.uint8):
        given = (np.array(one, kind) for one in ([1, 2], [0, 0], [0, 1]))
        assert np.array_equal(Decoder.open(path).forward(*given, wanted=np.array([0, 1])), wanted)


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("row", [-1, 70])
def test_results_of_tokens_that_are_not_there(path: Path, zeros: float, row: int) -> None:
    decoder = Decoder.open(path, key_zeros=zeros)
    with pytest.raises(ConfigError, match="not among the 70"):
        decoder.forward([1] * 70, range(70), wanted=[row])


def test_sequences_that_are_not_there(path: Path) -> None:
    decoder = Decoder.open(path)
    calls = [
        lambda: decoder.seq_cp(0, 64), lambda: decoder.seq_rm(-2), lambda: decoder.seq_last(-1),
        lambda: decoder.seq_first(64), lambda: decoder.mean_cache(64),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigError, match="sequences are 0 to 63"):
            call()


@pytest.mark.parametrize(
    "settings",
    [
        {"cells": 0}, {"layers": (2, 9)}, {"layers": (2, 1)}, {"kv": "bf16"}, {"activations": "int4"}, {"threads": -1},
        {"threads": 1 << 40}, {"key_zeros": 1.0}, {"texts": 65},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Decoder.open(path, **settings)
