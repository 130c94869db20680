"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic
from benchmarks._markdown import table

_ARMS = {"lonas": "LoNAS, one run", "lora": "cut first, then LoRA", "cut": "cut, not tuned"}


def _widths(result: Mapping[str, Any]) -> str:
    cells, seeds = result["cells"], result["seeds"]
    made, rows = [cells[f"lonas-{seed}"] for seed in seeds], []
    for share in made[0]["widths"]:
        mine = _elastic.points([one["widths"][share] for one in made])
        other = _elastic.points([cells[f"lora-{share}-{seed}"]["test"] for seed in seeds])
        rows.append([f"{float(share):.0%}", f"{mine:.2f}", f"{other:.2f}"])
    for share in made[0]["cut"]:
        mine = _elastic.points([one["cut"][share]["test"] for one in made])
        rows.append([f"searched, at most {share} of the multiply-accumulates", f"{mine:.2f}", ""])
    return table(["widths", "LoNAS, one run", "pruned, then LoRA"], rows)


def _language(result: Mapping[str, Any]) -> str:
    found = result["cells"]["language"]
    texts = list(found["given"])
    rows = [["as it is", *(f"{found['given'][text]:.2f}" for text in texts)]]
    for name, one in found.items():
        arm, _, share = name.partition("-")
        if share:
            rows.append([f"{_ARMS[arm]}, MLPs at {float(share):.0%}", *(f"{one[text]:.2f}" for text in texts)])
    return table(["SmolLM2", *(f"perplexity, {text}" for text in texts)], rows)


_TABLES = _elastic.Tables(
    {
        "MiniLM on the languages of short texts, its weights frozen: one run of LoNAS at several widths, beside a run "
        "of LoRA on a model pruned to each first (accuracy in points on held-out texts, mean of seeds).": _widths
    },
    {"SmolLM2, tuned on addresses to Congress, on them and on text that it was not tuned to (one seed):": _language},
)
summary, page = _TABLES.summary, _TABLES.page
