"""Arms of the claim that write text: a byte-level model across languages, SmolLM2 across man pages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._federated import JUDGED, own_scores, run
from benchmarks.shears.texts import _DECLARATION, articles
from lissome.core.config import to_toml
from lissome.data.local import data_dir, data_file
from lissome.pipeline.federation import FederationJob, FederationRecipe

SILOS = ("spa", "ita", "fra", "deu_1996", "nld", "eng", "dan", "pol")
"""Languages of the declaration, one silo each."""
MAN = ("cs", "de", "es", "fr")
PAGES, CHARACTERS = 8, 1500
"""Man pages of a language, and characters of each."""
TEXTS = {"pages": PAGES, "characters": CHARACTERS, "languages": MAN}

PRETRAIN_ROUNDS, TUNE_ROUNDS = 12, 2
PRETRAIN: dict[str, Any] = {
    "method": "ffm", "recipe": "pretrain", "trains": "all", "fresh": True, "freeze": [], "outer": "momentum",
    "outer_lr": 0.7, "outer_momentum": 0.9, "epochs": 1.0, "batch": 8,
}  # fmt: skip
TUNE: dict[str, Any] = {"method": "ffm", "lr": 3e-4, "epochs": 1.0, "batch": 4, "rank": 8}
PLAIN: dict[str, Any] = {**PRETRAIN, "outer": "replace", "moments": True}
ARMS: dict[str, dict[str, Any]] = {"federated": PRETRAIN, "centralised": PRETRAIN, "plain": PLAIN, "local": PLAIN}
"""`centralised` has the server's step of the federated arm with all tokens; `plain` is one run of AdamW over them, and
`local` one over each silo's own."""


PREFIX = "pretrain-"
"""Beginning of the names of cells of these arms."""

SEARCH: dict[str, Any] = {"method": "ffm", "recipe": "prompt-search", "tokens": 8, "candidates": 12, "dimensions": 16}
SEARCH_ROUNDS = 8
PROMPT: dict[str, Any] = {"method": "ffm", "recipe": "prompt", "tokens": SEARCH["tokens"], "lr": 1e-2, "batch": 8}
PROMPTED: dict[str, dict[str, Any]] = {"search": SEARCH, "gradients": PROMPT}
"""Virtual tokens before the zoo's Llama, found without and with gradients: it can answer, so that nothing else must be
learned."""
FEW = 48
"""Articles that virtual tokens are found by and judged by: without gradients each candidate costs a look at them."""


def declarations(folder: Path) -> Path:
    """Write every article of the declaration as a document of its language, and return the file."""
    with gzip.open(data_file(*_DECLARATION), "rt", encoding="utf-8") as lines:
        found = {row["file"]: row["text"] for row in map(json.loads, lines)}
    rows = []
    for language in SILOS:
        texts: dict[int, list[str]] = {}
        for article, line in articles(found[language]):
            texts.setdefault(article, []).append(line)
        rows += [{"text": "\n".join(parts), "client": language} for parts in texts.values() if any(parts)]
    return _written(folder / "declarations.jsonl", rows)


def pages(folder: Path) -> Path:
    """Write some man pages of every language, and return the file."""
    rows = []
    for language in MAN:
        with gzip.open(data_dir() / "multilingual" / f"man_{language}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for _, line in zip(range(PAGES), lines, strict=False)]
        rows += [{"text": text[:CHARACTERS], "client": language} for text in texts]
    return _written(folder / "pages.jsonl", rows)


def _written(file: Path, rows: list[dict[str, str]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def job_of(
    model: str, source: Path, step: dict[str, Any], arm: str, seed: int, rounds: int, *, most: int = 0
) -> FederationJob:
    """Return both sides of an arm whose silos are the languages of a file; `most` are the documents of all of it."""
    fields = {
        "model": model, "seed": seed, "arm": arm,
        "data": {"source": str(source), "learn": "tokens", "length": 128, "test": 0.15, "most": most},
        "partition": {"scheme": "natural"}, "step": [step],
        "federation": {"rounds": rounds, "evaluate_every": rounds, "judge_every": JUDGED},
    }  # fmt: skip
    return FederationJob(FederationRecipe.from_toml(to_toml(fields)))


def pretrained(
    arm: str, seed: int, rounds: int, changes: Mapping[str, Any], folder: Path, model: str = "zoo-llama"
) -> dict[str, Any]:
    """Pre-train from new weights with some settings changed: all arms see every token equally often."""
    step = {**ARMS[arm], **changes}
    job = job_of(model, declarations(folder), step, "centralised" if arm == "plain" else arm, seed, rounds)
    federation, cell = run(job, folder)
    cell["loss"] = federation.rounds[-1].metrics["server/loss"]
    cell["held_out"] = federation.rounds[-1].metrics["evaluate/loss"]
    if arm == "local":
        cell["own"] = own_scores(job, folder, "loss", learned=False)
    return cell


def prompted(name: str, seed: int, rounds: int, folder: Path, model: str = "zoo-llama") -> dict[str, Any]:
    """Find virtual tokens; return the loss on the server's articles without any, with the first ones and these."""
    job = job_of(model, declarations(folder), PROMPTED[name], "federated", seed, rounds, most=FEW)
    federation, cell = run(job, folder)
    plain = job_of(model, declarations(folder), TUNE, "zero-shot", seed, 1, most=FEW)
    before, _ = run(plain, folder / "plain")
    first, last = (federation.rounds[at].metrics["server/loss"] for at in (0, -1))
    return {**cell, "prompted": {"none": before.rounds[-1].metrics["server/loss"], "first": first, "last": last}}


def tuned(arm: str, seed: int, rounds: int, folder: Path, model: str = "smollm2-135m") -> dict[str, Any]:
    """Tune adapters across languages (``federated``), or only judge every client (``zero-shot``)."""
    job = job_of(model, pages(folder), TUNE, arm, seed, rounds)
    federation, cell = run(job, folder)
    cell["losses"] = {name: one["loss"] for name, one in federation.rounds[-1].scores.items()}
    return cell
