"""Train the small models that ship with lissome (`lissome.models.zoo`), on a CPU, from text beside the checkout.

    python -m tools.train_zoo                             # all of them; an interrupted run goes on
    python -m tools.train_zoo zoo-mamba2 --steps 8000     # one
    python -m tools.train_zoo --time                      # seconds per step, and what all would take

Language models of bytes: a Mamba-1, a Mamba-2, a hybrid of Mamba-2 and attention (Bamba), and a Llama, trained on man
pages and addresses to Congress (`LISSOME_DATA`). Documents that share passages are kept together; some of these groups
are held out for choosing the learning rate (of three, by short runs), others for the figure in the index. Weights are
stored in float16, and the figure is that of the stored ones.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bamba.modeling_bamba import BambaMixer

from lissome.core.errors import NumericsError
from lissome.core.events import EventStream
from lissome.core.files import read_json, write_json
from lissome.data.local import data_file
from lissome.data.text import Encoder, spread
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.hooks import Batch, Task
from lissome.engine.scoring import score_text
from lissome.engine.train import TrainConfig, train
from lissome.models.load import load_model
from lissome.models.model import Model
from tools._asking import Ticker, ask
from tools._shipping import ship

LENGTH = 256
BATCH = 8
RATES = (1.5e-3, 4e-3, 1e-2)
FLOOR = 1.9
"""Bits per byte on held-out text that each should reach."""
SEED = 0
END = 256
"""Id of the token between documents; the ids below are the bytes."""
_END = "<|end|>"
TRIAL = 0.05
"""Steps of a run that tries a learning rate, as a share of all."""

_SOURCES = {
    "man": ("multilingual/man_en.jsonl.gz", "a0c7e3ccec50acb2ab1961f0cfe01f55232581309672b579267c799d6d8e7fe3"),
    "addresses": ("lm/sotu.jsonl.gz", "8575a219d1a0e97075d971302337a12d247b146a2a108adbadd9c0dde310fa5c"),
}
_REPEATS = {"man": 3, "addresses": 1}  # both kinds are scored alike, but there is seven times as much of the second
_HELD_OUT = {"test": 1 / 16, "choice": 1 / 32}
_TEST_WINDOWS = 128  # of each source: 32,768 bytes
_WORDS = 8  # a passage is a run of so many words
_SHARED = 0.1  # of the shorter document's passages: then two belong together
_COMMON = 20  # a passage in more documents than that is a formula
_FIELDS: dict[str, Any] = {"vocab_size": END + 1, "bos_token_id": END, "eos_token_id": END}
_STEPS = (1e-3, 0.1)  # step sizes of a scan at the start, as in Mamba-2
_ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model of the zoo.

    Attributes:
        summary: One line.
        kind: Prefix of its classes in transformers.
        fields: Of its configuration.
        layers: Number of blocks.
        steps: Of training, on 2,048 bytes each: enough to reach `FLOOR` within an hour on one core.
    """

    summary: str
    kind: str
    fields: Mapping[str, Any]
    layers: int
    steps: int

    def build(self, layers: int | None = None) -> nn.Module:
        """Make it with random weights, the same ones every time."""
        import transformers

        count = layers or self.layers
        fields = {**_FIELDS, **self.fields, "num_hidden_layers": count, "tie_word_embeddings": True}
        if self.kind == "Bamba":
            fields["attn_layer_indices"] = list(range(2, count, 3))
        # a token of padding would have a zero embedding without gradient: behind zeros every norm multiplies the
        # gradient by a hundred, so that a window that begins with the end token made it overflow
        config = getattr(transformers, f"{self.kind}Config")(**fields, pad_token_id=None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module: Any = getattr(transformers, f"{self.kind}ForCausalLM")(config)
            if self.kind == "Bamba":
                _begin_as_mamba2(module)
        for settings in (module.config, module.generation_config):
            settings.pad_token_id = END
        return cast(nn.Module, module)


def _begin_as_mamba2(module: nn.Module) -> None:
    """Draw what a scan needs to learn as Mamba-2 does; Bamba's own start is meant for weights that are loaded.

    Its convolutions start at 0.02, which makes B, C and the gradients of the scan vanish, and its steps at 1.3, which
    forgets within three tokens.
    """
    mixers = [part for part in module.modules() if isinstance(part, BambaMixer)]
    for mixer in mixers:
        nn.init.kaiming_uniform_(mixer.conv1d.weight, a=math.sqrt(5))
        steps = torch.empty(mixer.num_heads).uniform_(math.log(_STEPS[0]), math.log(_STEPS[1])).exp()
        with torch.no_grad():
            mixer.dt_bias.copy_(steps.expm1().log())  # softplus undone


RECIPES = {
    "zoo-mamba": Recipe(
        summary="Mamba-1: 12 layers, width 96, 16 states per channel",
        kind="Mamba",
        fields={"hidden_size": 96, "state_size": 16},
        layers=12,
        steps=2400,
    ),
    "zoo-mamba2": Recipe(
        summary="Mamba-2: 12 layers, width 128, 8 heads of 32 channels, 32 states",
        kind="Mamba2",
        fields={
            "hidden_size": 128, "num_heads": 8, "head_dim": 32, "n_groups": 1, "state_size": 32, "chunk_size": 32,
        },
        layers=12,
        steps=8000,
    ),
    "zoo-hybrid": Recipe(
        summary="Bamba: 12 layers, width 96, every third an attention, the others Mamba-2; an MLP in each",
        kind="Bamba",
        fields={
            "hidden_size": 96, "intermediate_size": 192, **_ATTENTION, "mamba_n_heads": 6, "mamba_d_head": 32,
            "mamba_n_groups": 1, "mamba_d_state": 32, "mamba_expand": 2, "mamba_chunk_size": 32,
            "initializer_range": 0.1,  # 1/√width, as in the Mambas
        },
        layers=12,
        steps=2400,
    ),
    "zoo-llama": Recipe(
        summary="Llama: 8 layers, width 128, 4 query and 2 key-value heads",
        kind="Llama",
        fields={"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.05, **_ATTENTION},
        layers=8,
        steps=2400,
    ),
}  # fmt: skip


def byte_tokenizer() -> Any:
    """Make a tokenizer whose ids are the bytes of the text in UTF-8, and one token for the end of a document."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # byte-level BPE without merges; it writes bytes as the letters of GPT-2's table
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}
    core = tokenizers.Tokenizer(models.BPE({letter: byte for byte, letter in letters.items()} | {_END: END}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    names = dict.fromkeys(("eos_token", "pad_token"), _END)
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


def related(texts: Sequence[str]) -> list[list[int]]:
    """Group texts that share passages, directly or through others; whatever the order of their sentences."""
    passages = [_passages(text) for text in texts]
    where: dict[int, list[int]] = {}
    for index, found in enumerate(passages):
        for passage in found:
            where.setdefault(passage, []).append(index)
    shared: Counter[tuple[int, int]] = Counter()
    for owners in where.values():
        if len(owners) <= _COMMON:
            shared.update(combinations(owners, 2))
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for (first, second), count in shared.items():
        if count > _SHARED * min(len(passages[first]), len(passages[second])):
            parent[root(second)] = root(first)
    groups: dict[int, list[int]] = {}
    for index in range(len(texts)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _passages(text: str) -> set[int]:
    """Checksums of a quarter of all runs of eight words, the same quarter in every text."""
    words = text.lower().split()
    runs = (" ".join(words[start : start + _WORDS]) for start in range(len(words) - _WORDS + 1))
    return {checksum for run in runs if not (checksum := zlib.crc32(run.encode())) & 3}


def deal(texts: Sequence[str]) -> dict[str, list[str]]:
    """Deal texts out to ``train``, ``choice`` and ``test``: related ones together, in an order that they decide."""
    groups = sorted(related(texts), key=lambda group: hashlib.sha256(texts[group[0]].encode()).digest())
    size, found = sum(map(len, texts)), {"train": list[str](), "choice": list[str](), "test": list[str]()}
    for group in groups:
        wanting = (name for name, share in _HELD_OUT.items() if sum(map(len, found[name])) < share * size)
        small = len(group) <= max(1, len(texts) // 50)  # a large family would be all that is held out
        found[next(wanting, "train") if small else "train"] += [texts[index] for index in group]
    return found


@dataclass(frozen=True, eq=False)
class Texts:
    """Windows of bytes.

    Attributes:
        sources: Windows to learn from by source, each once, int16 [N, 256].
        train: All of them, int16 [N, 256]; those of a small source are repeated.
        choice: Windows to choose a learning rate by, LongTensor[n, 256].
        test: Held-out windows by source, LongTensor[128, 256] each.
        facts: Sizes and checksums, for the index.
    """

    sources: dict[str, Tensor]
    train: Tensor
    choice: Tensor
    test: dict[str, Tensor]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, index: int) -> Tensor:
        return self.train[index].long()


@cache
def texts() -> Texts:
    """Read and cut the text.

    Raises:
        AssetError: When it is not on this machine; says where it is looked for.
    """
    encoder, parts = Encoder(byte_tokenizer()), dict[str, dict[str, Tensor]]()
    facts: dict[str, Any] = {}
    for source, (file, sha256) in _SOURCES.items():
        with gzip.open(data_file(file, sha256), "rt", encoding="utf-8") as lines:
            dealt = deal(list(dict.fromkeys(json.loads(line)["text"] for line in lines)))
        parts[source] = {name: _windows(encoder, documents) for name, documents in dealt.items()}
        known = {passage for document in dealt["train"] for passage in _passages(document)}
        held = {passage for document in dealt["test"] for passage in _passages(document)}
        facts[source] = {
            "file": file, "sha256": sha256, "documents": {name: len(found) for name, found in dealt.items()},
            "bytes": {name: found.numel() for name, found in parts[source].items()},
            "test_passages_seen": len(held & known) / len(held),
        }  # fmt: skip
    return Texts(
        {source: part["train"] for source, part in parts.items()},
        torch.cat([part["train"].repeat(_REPEATS[source], 1) for source, part in parts.items()]),
        torch.cat([spread(part["choice"], _TEST_WINDOWS // 2) for part in parts.values()]).long(),
        {source: spread(part["test"], _TEST_WINDOWS).long() for source, part in parts.items()},
        facts,
    )


def _windows(encoder: Encoder, documents: Iterable[str]) -> Tensor:
    """Join documents by the end token and cut them into int16 [N, 256]."""
    ids = [token for document in documents for token in (*encoder.encode(document), END)]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH], dtype=torch.int16).view(-1, LENGTH)


def next_bytes(module: nn.Module, batch: Batch) -> Tensor:
    """Loss of windows LongTensor[B, T]: mean over their next tokens, with the head's gradient (it is the embedding)."""
    ids = batch.examples
    scores = module(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(scores.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def bits(model: Model, windows: Tensor) -> float:
    """Return the mean loss of a model in bits per byte."""
    return float(score_text(model, windows).nll.double().mean()) / math.log(2)


def settings(steps: int, rate: float) -> TrainConfig:
    """Return how a model is trained."""
    return TrainConfig(steps=steps, lr=rate, batch=BATCH, warmup=max(1, steps // 50), weight_decay=0.05)


def trained(recipe: Recipe, steps: int, rate: float, folder: Path, layers: int | None = None) -> tuple[Model, float]:
    """Train a model, going on from `folder`; returns it and the seconds that it took."""
    module = recipe.build(layers)
    model, data = load_model(module), texts()
    key = {"recipe": [recipe.kind, {**recipe.fields}, layers or recipe.layers], "steps": steps, "rate": rate}
    key |= {"data": data.facts, "config": settings(steps, rate).to_mapping(), "loss": next_bytes.__name__}
    result = train(
        Task(module=module, loss=next_bytes, data=data), settings(steps, rate), seed=SEED,
        checkpoint=Checkpoint(folder, key), events=EventStream(Ticker(f"{folder.parent.name}/{folder.name}", _in_bits)),
    )  # fmt: skip
    return model, result.seconds


def choose(recipe: Recipe, steps: int, folder: Path) -> dict[float, float | None]:
    """Return the bits per byte of short runs with each learning rate, None where one diverged; reads former runs."""
    short, found = max(1, round(TRIAL * steps)), {}
    for rate in RATES:
        store = folder / f"trial-{short}-{rate:g}.json"
        if not store.exists():
            try:
                model, _ = trained(recipe, short, rate, folder / f"trial-{short}-{rate:g}")
                write_json(store, bits(model, texts().choice))
            except NumericsError as error:
                print(f"{folder.name}: {error}", flush=True)
                write_json(store, None)
        value = read_json(store)
        found[rate] = None if value is None else float(value)
    return found


def best(recipe: Recipe, steps: int, folder: Path, tried: Mapping[float, float | None]) -> tuple[Model, float, float]:
    """Train with the best rate that was tried, or the next best one where that diverges: model, seconds, rate.

    Raises:
        NumericsError: When all of them diverge.
    """
    converged = sorted((value, rate) for rate, value in tried.items() if value is not None)
    for _, rate in converged:
        try:
            return *trained(recipe, steps, rate, folder / f"whole-{steps}-{rate:g}"), rate
        except NumericsError as error:
            print(f"{folder.name}: {error}", flush=True)
    raise NumericsError(f"{folder.name} diverges with every learning rate of {', '.join(map(str, tried))}.")


def _judged(model: Model) -> dict[str, float]:
    found = {source: bits(model, windows) for source, windows in texts().test.items()}
    return {**found, "mean": sum(found.values()) / len(found)}


def make(name: str, steps: int | None, out: Path, work: Path) -> Mapping[str, float]:
    """Try learning rates, train, store and enter one model into the index; returns its bits per byte."""
    recipe = RECIPES[name]
    count, folder = steps or recipe.steps, work / name
    tried = choose(recipe, count, folder)
    shown = (f"lr {lr:g}: {'diverged' if value is None else f'{value:.3f}'}" for lr, value in tried.items())
    print(f"{name}: {', '.join(shown)} bits per byte", flush=True)
    model, seconds, rate = best(recipe, count, folder, tried)
    found = ship(
        name, Model(model.module, byte_tokenizer()), out, figure="bits_per_byte", judge=_judged,
        summary=f"{recipe.summary}; trained here on man pages and addresses to Congress, byte by byte",
        training={
            "steps": count, "batch": [BATCH, LENGTH], "rate": rate, "seconds": seconds,
            "tried": {f"{lr:g}": value for lr, value in tried.items()}, "seed": SEED, "data": texts().facts,
        },
    )  # fmt: skip
    mark = "reached" if found["mean"] <= FLOOR else "NOT reached"
    print(f"{name}: {found['mean']:.3f} bits per byte ({seconds:.0f} s); {FLOOR} {mark}", flush=True)
    return found


def step_seconds(name: str) -> float:
    """Time a step of one model: the better of two after a first one."""
    module = load_model(RECIPES[name].build()).module
    task = Task(module=module, loss=next_bytes, data=texts())
    times: list[float] = []
    stream = EventStream(lambda event: times.append(time.perf_counter()) if event.stage == "train" else None)
    train(task, settings(3, 1e-3), seed=SEED, events=stream)
    return min(after - before for before, after in pairwise(times[1:-1]))  # between the start and the finish


def _in_bits(loss: float) -> str:
    return f"{loss / math.log(2):.2f} bits"


def _show_times(names: Sequence[str], steps: int | None, say: Callable[[str], None] = print) -> None:
    total = 0.0
    for name in names:
        each, count = step_seconds(name), steps or RECIPES[name].steps
        minutes = each * count * (1 + TRIAL * len(RATES)) / 60
        total += minutes
        say(f"{name}: {each:.3f} s per step, {count} steps: {minutes:.0f} min, learning rates included")
    say(f"together: {total:.0f} min with {torch.get_num_threads()} threads")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for."""
    asked = ask("tools.train_zoo", __doc__, RECIPES, arguments)
    if asked.time:
        _show_times(asked.names, asked.steps)
        return
    for name in asked.names:
        make(name, asked.steps, asked.out, asked.work)


if __name__ == "__main__":
    main()
