"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic, _sweep
from benchmarks._markdown import table
from benchmarks.lonas.run import TEXTS, ratio

_ARMS = {"cut": "cut by magnitude, not tuned", "lora": "cut by magnitude, then LoRA", "lonas": "LoNAS, one run"}


def _widths(result: Mapping[str, Any]) -> str:
    cells, seeds = result["cells"], result["seeds"]
    made, rows = [[cells[f"sandwich-{seed}"] for seed in seeds], [cells[f"random-{seeds[0]}"]]], []
    for share in made[0][0]["widths"]:
        alone = [cells[f"lora-{share}-{seed}"] for seed in seeds]
        tests = [[one["widths"][share] for one in runs] for runs in made] + [[one["test"] for one in alone]]
        rows.append([f"{float(share):.0%}", *(f"{_elastic.points(each):.2f}" for each in tests), alone[0]["chosen"]])
    for share in made[0][0]["cut"]:
        mine = [_elastic.points([one["cut"][share]["test"] for one in runs]) for runs in made]
        rows.append(
            [f"searched, at most {share} of the multiply-accumulates", *(f"{each:.2f}" for each in mine), "", ""]
        )
    arms = ("LoNAS, one run, sandwich", "LoNAS, one run, one path (one seed)", "pruned, then LoRA")
    learnt = f"Settings of LoNAS: {made[0][0]['chosen']}."
    return f"{table(['widths', *arms, 'settings of LoRA'], rows)}\n\n{learnt}"


def _shown(points: list[float]) -> str:
    return ", ".join(f"{each:.1f}" for each in points)


def _language(result: Mapping[str, Any]) -> str:
    """Perplexity of both texts by arm and width, over that of SmolLM2 as it is."""
    cells = result["cells"]
    first, runs = cells["language-given"], [cells[f"language-{seed}"] for seed in result["seeds"]]
    rows = [["as it is", *_against([first["given"]], first["given"])]]
    for share in runs[0]["params"]:
        for arm, label in _ARMS.items():
            key = f"{arm}-{share}"
            found = [one[key] for one in ([first] if arm == "cut" else runs) if key in one]
            if found:
                rows.append([f"{label}, MLPs at {float(share):.0%}", *_against(found, first["given"])])
    return table(["SmolLM2", *(f"perplexity, {text}" for text in TEXTS)], rows)


def _against(found: list[Mapping[str, list[float]]], given: Mapping[str, list[float]]) -> list[str]:
    columns = []
    for text in TEXTS:
        mine = [one[text] for one in found]
        value, over = ratio(mine, [[0.0] * len(given[text])]), ratio(mine, [given[text]])
        columns.append(f"{value.value:.2f} (× {over.value:.3f}, {over.low:.3f}–{over.high:.3f})")
    return columns


def _line(result: Mapping[str, Any]) -> str:
    cells, seeds = result["cells"], result["seeds"]
    shares = cells[f"sandwich-{seeds[0]}"]["widths"]
    one = [_elastic.points([cells[f"sandwich-{seed}"]["widths"][share] for seed in seeds]) for share in shares]
    each = [_elastic.points([cells[f"lora-{share}-{seed}"]["test"] for seed in seeds]) for share in shares]
    return (
        f"adapters of MiniLM at {', '.join(f'{float(at):.0%}' for at in shares)} of its widths have an accuracy of "
        f"{_shown(one)} % from one run, "
        f"{_shown(each)} % from a run of LoRA for each."
    )


_TABLES = _elastic.Tables(
    _line,
    {
        "MiniLM on the languages of short texts, its weights frozen: one run of LoNAS at several widths, beside a run "
        "of LoRA on a model pruned to each first (accuracy in points on held-out texts, mean of seeds). All have as "
        "many steps; a step of the sandwich is three passes, as many as the three runs have together.": _widths,
        "SmolLM2, tuned on addresses to Congress, on them and on text that it was not tuned to: perplexity of the mean "
        "loss over seeds, and how many times that of SmolLM2 as it is, with the 95 % interval over windows.": _language,
        "Settings that were tried with one seed and shorter runs, on examples to choose by: accuracy in points (LoNAS: "
        "the mean over its widths; higher is better), of SmolLM2 perplexity (lower is better). A step of the sandwich "
        "is three passes. Arms were then trained with the best of their learning rates, ranks and dropouts, LoNAS with "
        "that of its orders and its shares of even paths too.": _sweep.tried,
    },
    note=_elastic.RESAMPLED,
)
summary, page = _TABLES.summary, _TABLES.page
