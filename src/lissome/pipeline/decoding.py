"""What the verbs do with a folder of nested weights: the decoder engine runs it, and no torch is imported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lissome.core.errors import ConfigError, DataError
from lissome.engine.decode import Decoder, DecoderSettings, Order, Session, write
from lissome.engine.decode.cache import cache_named
from lissome.engine.decode.decoder import Weights
from lissome.engine.decode.phases import Phases, Policy, read_schedule
from lissome.engine.decode.schedulers import FILE, KINDS, Scheduler, read_scheduler
from lissome.models.nested.file import layout_of
from lissome.models.nested.folder import NestedFolder
from lissome.models.nested.text import TextCodec
from lissome.pipeline.reports import GenerateReport, InspectReport

_PROMPT = 128  # tokens of the default request, whose cache `inspect` states
_NEW = 64
_CELL = 4  # bytes of a key and a value in 16 bits


def generate(
    target: Path, prompt: str, *, max_new_tokens: int, schedule: str | None = None, cache: str | None = None
) -> GenerateReport:
    """Continue a prompt greedily; a chat model gets it as a user's message.

    Args:
        target: The folder.
        prompt: The text.
        max_new_tokens: Most tokens to write; fewer where the model reads no more.
        schedule: Bits by phase, such as ``4:64,3`` (default: what the folder says, else all bits everywhere).
        cache: How keys and values are held, such as ``int8:0.5`` (default: ``f16``).

    Raises:
        ArtifactError: When a file of the folder is damaged.
        ConfigError: When the schedule or the cache is none, or the weights have not the bits.
        DataError: When the prompt fills all that the model reads, or the folder has no tokenizer.
    """
    folder = NestedFolder.open(target)
    policy = policy_of(folder, schedule)
    return written(folder.name, folder.file, folder.text, policy, prompt, max_new_tokens=max_new_tokens, cache=cache)


def written(
    name: str,
    weights: Weights,
    codec: TextCodec,
    policy: Policy,
    prompt: str,
    *,
    max_new_tokens: int,
    cache: str | None = None,
) -> GenerateReport:
    """Let the engine continue a prompt greedily; arguments and errors as in `generate`."""
    ids = codec.prompt(prompt)
    context = weights.spec.context
    if len(ids) >= context:
        raise DataError(f"the prompt has {len(ids)} tokens, {name} reads {context}; shorten it.")
    most = min(max_new_tokens, context - len(ids))
    decoder = Decoder(weights, DecoderSettings(cells=len(ids) + most, **cache_named(cache or "f16")))
    order = Order(prompt=tuple(ids), most=most, policy=policy, continues=codec.template is None)
    start, times, texts, tokens, bits = time.perf_counter(), [], [], 0, []
    for piece in write(Session(decoder, keep=0), codec, order):
        times.append(time.perf_counter())
        texts.append(piece.text)
        bits.append(piece.bits or 0)
        tokens = piece.tokens
    return GenerateReport(
        text="".join(texts),
        tokens=tokens,
        prefill=len(ids) / (times[0] - start),
        decode=(len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
        bits=sum(bits[1:]) / len(bits[1:]) if len(bits) > 1 else float(bits[0]),
    )


def policy_of(folder: NestedFolder, schedule: str | None = None) -> Phases | Scheduler:
    """Return what decides the bits of a folder's texts: as asked, else as it says, else all bits.

    Raises:
        ConfigError: When the schedule is none, the weights have not its bits, or the folder has another scheduler.
        ArtifactError: When what the folder says is damaged, or a scheduler is wanted that is not there.
    """
    known, precisions = read_schedule(folder.path) if schedule is None else schedule, folder.file.layout.precisions
    if known is None:
        return Phases(precisions[-1], ((precisions[-1], None),))
    if (word := known.strip()) in KINDS:
        sizes = [layer.attention.size for layer in folder.file.spec.layers if layer.attention is not None]
        found = read_scheduler(folder.path / FILE).require(precisions, sizes[-1] if sizes else None)
        if found.word != word:
            raise ConfigError(f"{folder.name} has no {word} scheduler; it has a {found.word} one.")
        return found
    return Phases.parse(known).require(precisions)


def inspect(target: Path) -> InspectReport:
    """Say what is in a folder of nested weights.

    Raises:
        ArtifactError: When a file of the folder is damaged.
    """
    folder = NestedFolder.open(target)
    file, manifest = folder.file, folder.manifest
    spec, counts = file.spec, sizes(folder)
    attentions = [layer.attention for layer in spec.layers if layer.attention is not None]
    outside = [name for name in spec.weights() if layout_of(name, file.layout, file.head) is file.head]
    return InspectReport(
        name=folder.name,
        kind="model",
        facts={
            "architecture": spec.kind,
            "family": "nested",
            "task": "causal-lm",
            "source": str(folder.path),
            "sha256": folder.sha256,
            "hidden": spec.hidden,
            "vocabulary": spec.vocabulary,
            "embedding_params": sum(_numbers(spec.weights()[name]) for name in outside),
            "cache_bytes": (_PROMPT + _NEW) * sum(_CELL * one.kv_heads * one.size for one in attentions),
            "axes": 0,
            "precisions": list(file.layout.precisions),
            "planes": [str(layout) for layout in (file.layout, file.head)],
            "token_bytes": {str(bits): file.token_bytes(bits) for bits in file.layout.precisions},
            "layers": _layers(folder),
            "schedule": str(policy_of(folder)),
            "tags": list(manifest.tags) if manifest else ["nested"],
        },
        figures=counts,
    )


def sizes(folder: NestedFolder) -> dict[str, float]:
    """Return counted figures by budget term."""
    spec, head = folder.file.spec, folder.file.head
    weights = spec.weights()
    inner = sum(
        _numbers(shape) for name, shape in weights.items() if layout_of(name, folder.file.layout, head) is not head
    )
    vectors = {name: count for name, count in spec.vectors().items() if not name.startswith("ropes.")}
    inside = sum(count for name, count in vectors.items() if name.startswith("layers."))
    return {
        "params": float(sum(map(_numbers, weights.values())) + sum(vectors.values())),
        "block_params": float(inner + inside),
        "disk": float(folder.bytes),
    }


def _numbers(shape: Sequence[int]) -> int:
    return shape[0] * shape[1]


def _layers(folder: NestedFolder) -> list[dict[str, Any]]:
    """Sizes of every block, in the words of the anatomy."""
    layers: list[dict[str, Any]] = []
    for layer in folder.file.spec.layers:
        parts: dict[str, Any] = {}
        if (attention := layer.attention) is not None:
            parts["attention"] = {"groups": attention.kv_heads, "queries": attention.heads // attention.kv_heads}
        if layer.mlp is not None:
            parts["mlp"] = {"width": layer.mlp.width}
        layers.append(parts)
    return layers
