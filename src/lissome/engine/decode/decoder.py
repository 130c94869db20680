"""Runs a file of nested weights, or a contiguous range of its layers, in compiled code.

A cell of the key-value cache has a position and a set of sequences. A token sees the cells of its sequences up to its
position; a token of several sequences, a node of a tree of guesses, sees the cells that all of them share. Results of a
token depend on what it sees and on the precision, and on nothing else: neither on the batch nor on threads.

With a sparse cache (SparAMX, arXiv 2502.12444), positions lie in blocks of 64. A token sees those of its own block as
they are, and those of earlier blocks frozen: of every key and value the numbers of largest magnitude, as many in each.
"""

# M tokens of a batch, D residual width, V tokens of the vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ArtifactError, ConfigError
from lissome.engine.decode.batch import BLOCK, SEQUENCES, block_ends, integers, one_sequence, sets_of
from lissome.models.nested.file import open_nested
from lissome.models.nested.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from lissome.ops.kernels import native
from lissome.ops.nested import Layout

Floats = NDArray[np.float32]
Kv = Literal["f16", "int8", "f32"]
"""How keys and values are held."""
Activations = Literal["int8", "f32"]
"""How activations are multiplied."""


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """How a decoder runs.

    Attributes:
        cells: Positions that all sequences together hold. Default 2048.
        kv: How keys and values are held: ``"f16"`` (default), ``"int8"`` with a scale per head and position, ``"f32"``.
        key_zeros: Share of zeros in frozen keys, 0 to below 1. Default 0; with this or the next above it, the cache is
            sparse.
        value_zeros: The same for values.
        texts: Sequences that grow at the same time in a sparse cache: each has room for 128 cells that are not frozen.
        activations: ``"int8"`` (default): quantised per token and group of inputs; ``"f32"``: as they are, which is
            some five times slower and exact.
        threads: Threads (default 0: all that the process may use); no result depends on it.
        layers: First and last + 1 of the layers to run (default: all). The first range takes tokens, the last one gives
            logits, others take and give hidden states.
        resident: Copy weights to huge pages instead of mapping the file. Default: yes, it reads faster; mapped weights
            are shared by processes.
    """

    cells: int = 2048
    kv: Kv = "f16"
    key_zeros: float = 0.0
    value_zeros: float = 0.0
    texts: int = 1
    activations: Activations = "int8"
    threads: int = 0
    layers: tuple[int, int] | None = None
    resident: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("kv", get_args(Kv)), ("activations", get_args(Activations))):
            if (given := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {given!r:.40}.")
        for name, least, most in (("cells", 1, 1 << 24), ("texts", 1, SEQUENCES), ("threads", 0, 1 << 16)):
            if not least <= (number := getattr(self, name)) <= most:
                raise ConfigError(f"{name} must be {least} to {most}, got {number}.")
        for name in ("key_zeros", "value_zeros"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be a share from 0 to below 1, got {share}.")

    @property
    def sparse(self) -> bool:
        """Whether the cache freezes."""
        return self.key_zeros > 0 or self.value_zeros > 0


class Weights(Protocol):
    """What a decoder reads."""

    @property
    def path(self) -> Path:
        """Where they are from, for messages."""

    @property
    def layout(self) -> Layout:
        """Says at which precisions they are read."""

    @property
    def spec(self) -> DecoderSpec:
        """What the decoder consists of."""

    def vector(self, name: str) -> Floats:
        """Return a vector."""

    def held(self, name: str, *, resident: bool) -> Any:
        """Return a matrix as the compiled module holds it; `resident` copies it to huge pages."""


class Cancelled(Exception):  # noqa: N818  # nothing went wrong
    """A forward was cancelled; the cache is as it was before."""


class Decoder:
    """A model that is ready to run.

    Args:
        file: The weights: a file of nested ones, or packed ones (`lissome.engine.decode.packed`).
        settings: How to run.

    Raises:
        ArtifactError: When the weights do not fit the description.
        ConfigError: When a setting cannot be, or there are no compiled kernels.
    """

    def __init__(self, file: Weights, settings: DecoderSettings | None = None) -> None:
        self.file, self.settings = file, settings or DecoderSettings()
        self.spec, self._named = file.spec, file.spec.vectors()
        count = len(self.spec.layers)
        self.first, self.last = self.settings.layers or (0, count)
        if not 0 <= self.first <= self.last <= count:
            raise ConfigError(f"layers must be a range within 0 to {count}, got {self.first} to {self.last}.")
        self._native = native.required()
        try:
            self._engine = self._built()
        except ValueError as error:
            raise ArtifactError(f"{file.path} cannot be run: {error}.") from error

    @classmethod
    def open(cls, path: Path | str, **settings: Any) -> Self:
        """Open a file or folder; settings are those of `DecoderSettings`."""
        return cls(open_nested(path), DecoderSettings(**settings))

    @property
    def precisions(self) -> tuple[int, ...]:
        """Precisions that it runs at, the lowest first."""
        return self.file.layout.precisions

    @property
    def width(self) -> int:
        """Numbers of a result: V, or D where the range does not end with logits."""
        return int(self._engine.outputs)

    def forward(
        self,
        tokens: Sequence[int] | NDArray[Any],
        positions: Sequence[int] | NDArray[Any],
        sequences: Sequence[int | Sequence[int]] | NDArray[Any] | int = 0,
        precision: int | None = None,
        *,
        wanted: Sequence[int] | NDArray[Any] | None = None,
    ) -> Floats:
        """Run a batch and keep its keys and values.

        Args:
            tokens: Int[M], or hidden states float32[M, D] where the range does not begin with the embedding.
            positions: Int[M].
            sequences: The sequence of all tokens, or for each one its sequence or sequences, 0 to 63.
            precision: Bits to read (default: all).
            wanted: Tokens whose results to return (default: the last).

        Returns:
            float32[len(wanted), V] logits, or hidden states [len(wanted), D].

        Raises:
            ConfigError: When something given cannot be, the cache is full, or a token sees frozen positions in its own
                block: those must be removed and run again.
            Cancelled: When `cancel` was called. A sparse cache may have frozen what was in the first token's block.
        """
        where = integers(positions, "positions")
        given = np.asarray(tokens)
        ready: NDArray[Any] = np.ascontiguousarray(given, np.float32) if given.ndim > 1 else integers(given, "tokens")
        if not len(where):
            raise ConfigError("a batch has at least one token, got none.")
        if len(ready) != len(where):
            raise ConfigError(f"there are {len(where)} positions and {len(ready)} tokens; give one for each.")
        rows = [len(where) - 1] if wanted is None else list(wanted)
        if any(not 0 <= row < len(where) for row in rows):
            raise ConfigError(f"results are wanted of tokens that are not among the {len(where)} of the batch.")
        out = np.empty((len(rows), self.width), np.float32)
        bits = self.file.layout.bits if precision is None else precision
        sets = sets_of(sequences, len(where))
        ends = block_ends(where, sets) if self.settings.sparse else [len(where)]
        for first, last in zip([0, *ends], ends, strict=False):
            own = [at for at, row in enumerate(rows) if first <= row < last]
            part = out if len(ends) == 1 else np.empty((len(own), self.width), np.float32)
            listed = rows if len(ends) == 1 else [rows[at] - first for at in own]
            try:
                self._run(ready[first:last], where[first:last], sets[first:last], bits, listed, part)
            except (ConfigError, Cancelled):
                self._undo(where[:first], sets[:first])
                raise
            if len(ends) > 1:
                out[own] = part
        return out

    def _run(
        self, ready: NDArray[Any], where: NDArray[np.int32], sets: NDArray[np.uint64], bits: int, rows: Any, out: Floats
    ) -> None:
        try:
            outcome = self._engine.forward(ready, where, sets, bits, rows, out)
        except ValueError as error:
            raise ConfigError(f"this batch cannot be run: {error}.") from error
        if outcome == "full":
            used, cells = self._engine.used, self.settings.cells
            raise ConfigError(
                f"the cache holds {used} of {cells} positions, {len(where)} more do not fit; remove sequences with "
                "seq_rm, or give more cells."
            )
        if outcome == "cancelled":
            raise Cancelled

    def _undo(self, where: NDArray[np.int32], sets: NDArray[np.uint64]) -> None:
        """Take tokens of a batch that did not come to its end out of the cache again."""
        for position, given in zip(where.tolist(), sets.tolist(), strict=True):
            for sequence in range(SEQUENCES):
                if given >> sequence & 1:
                    self.seq_rm(sequence, position, position + 1)

    def cancel(self) -> None:
        """Stop a forward of another thread, or else the next one, before its next layer."""
        self._engine.cancel()

    def seq_cp(self, source: int, target: int, first: int = 0, last: int = 2**31 - 1) -> None:
        """Let positions [first, last) of a sequence belong to another one too; nothing is copied."""
        self._engine.seq_cp(one_sequence(source), one_sequence(target), first, last)

    def seq_rm(self, sequence: int, first: int = 0, last: int = 2**31 - 1) -> None:
        """Take positions [first, last) from a sequence, or from all when it is −1."""
        self._engine.seq_rm(sequence if sequence == -1 else one_sequence(sequence), first, last)

    def stays(self, same: int, length: int) -> int:
        """Return how many of the first `same` tokens of a sequence of `length` may stay when others shall follow them.

        All may, but of frozen ones only whole blocks: a block is frozen by what comes after it.
        """
        begun = max(0, length - 1) // BLOCK * BLOCK
        return same if not self.settings.sparse or same >= begun else same // BLOCK * BLOCK

    def seq_last(self, sequence: int) -> int:
        """Return the largest position of a sequence; −1 when it has none."""
        return int(self._engine.seq_last(one_sequence(sequence)))

    def seq_first(self, sequence: int, start: int = 0) -> int:
        """Return the smallest position of a sequence from `start` on; −1 when it has none."""
        return int(self._engine.seq_first(one_sequence(sequence), start))

    def mean_cache(self, sequence: int = 0) -> tuple[Floats, Floats]:
        """Return the keys and values of a sequence in the last layer that has an attention, as means over heads.

        Returns:
            float32[T, E] each, in the order of positions.

        Raises:
            ConfigError: When no layer has an attention.
        """
        sizes = {at: part.attention.size for at, part in enumerate(self._layers) if part.attention is not None}
        if not sizes:
            raise ConfigError("no layer of this model has an attention, so that there are no keys and values.")
        layer, size = max(sizes.items())
        count, keys, values = self._engine.mean_cache(layer, one_sequence(sequence))
        return keys.reshape(count, size), values.reshape(count, size)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache's cells."""
        lasting = self.cell_bytes * self.settings.cells
        return lasting + int(self._engine.dense_bytes) if self.settings.sparse else lasting

    @property
    def cell_bytes(self) -> int:
        """Bytes of a position for good: in a sparse cache, once it is frozen."""
        return int(self._engine.cell_bytes)

    @property
    def free(self) -> int:
        """Cells that hold nothing."""
        return self.settings.cells - int(self._engine.used)

    def weight_bytes(self, precision: int) -> int:
        """Bytes of weights that a token reads."""
        return int(self._engine.weight_bytes(precision))

    def _built(self) -> Any:
        spec, whole = self.spec, self.last == len(self.spec.layers)
        starts = self.first == 0
        embedding = self._weight("embedding") if starts or (whole and spec.tied) else None
        head = None
        if whole:
            head = embedding if spec.tied else self._weight("head")
        return self._native.Engine(
            hidden=spec.hidden,
            eps=spec.eps,
            ropes=[(self.file.vector(f"ropes.{at}"), rope.scale) for at, rope in enumerate(spec.ropes)],
            layers=[self._layer(at, spec.layers[at]) for at in range(self.first, self.last)],
            embedding=embedding if starts else None,
            embedding_scale=spec.embedding_scale,
            head=head,
            head_norm=self.file.vector("norm") if whole else None,
            head_cap=spec.head_cap,
            cells=self.settings.cells,
            kv=self.settings.kv,
            activations=self.settings.activations,
            threads=self.settings.threads,
            **self._freezing(),
        )

    def _freezing(self) -> dict[str, Any]:
        """What the engine must know of a sparse cache."""
        given = self.settings
        if not given.sparse:
            return {}
        return {"key_zeros": given.key_zeros, "value_zeros": given.value_zeros, "dense": 2 * BLOCK * given.texts}

    @property
    def _layers(self) -> tuple[LayerSpec, ...]:
        return self.spec.layers[self.first : self.last]

    def _layer(self, at: int, layer: LayerSpec) -> tuple[Any, Any]:
        attention = None if layer.attention is None else self._attention(f"layers.{at}.attention", layer.attention)
        return attention, None if layer.mlp is None else self._mlp(f"layers.{at}.mlp", layer.mlp)

    def _attention(self, name: str, part: AttentionSpec) -> Any:
        return self._native.Attention(
            qkv=self._weight(f"{name}.qkv"),
            out=self._weight(f"{name}.out"),
            heads=part.heads,
            kv_heads=part.kv_heads,
            size=part.size,
            scale=part.scale,
            cap=part.cap,
            window=part.window,
            rope=part.rope,
            **self._vectors(name, "norm", "post_norm", "query_norm", "key_norm", "qkv_bias", "out_bias"),
        )

    def _mlp(self, name: str, part: MlpSpec) -> Any:
        return self._native.Mlp(
            gate_up=self._weight(f"{name}.gate_up"),
            down=self._weight(f"{name}.down"),
            width=part.width,
            gate=part.gate,
            **self._vectors(name, "norm", "post_norm", "gate_up_bias", "down_bias"),
        )

    def _vectors(self, name: str, *parts: str) -> dict[str, Floats]:
        return {part: self.file.vector(f"{name}.{part}") for part in parts if f"{name}.{part}" in self._named}

    def _weight(self, name: str) -> Any:
        return self.file.held(name, resident=self.settings.resident)
