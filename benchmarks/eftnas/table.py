"""Markdown of the claim's stored results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import _elastic, _sweep
from benchmarks._markdown import table
from benchmarks.eftnas import answers
from benchmarks.eftnas.run import volume


def _arms(result: Mapping[str, Any]) -> str:
    cells, seeds, rows = result["cells"], result["seeds"], []
    for name, cell in cells.items():
        arm, _, seed = name.rpartition("-")
        if name.startswith("teacher-"):
            rows.append([_said(name), _mean([cell["test"]]), "", "", cell["chosen"]])
        if seed != str(seeds[0]) or "chosen" not in cell:
            continue
        found = [cells[f"{arm}-{each}"] for each in seeds if f"{arm}-{each}" in cells]
        label, chosen, passes = _said(arm), cell["chosen"], f"{cell.get('passes', '')}"
        if "cut" not in cell:
            reached = f" (reached {cell['macs']:.3f})" if "macs" in cell else ""
            rows.append([f"{label}{reached}", _mean([one["test"] for one in found]), "", passes, chosen])
            continue
        behind = f"{volume(found, arm.rpartition('-')[2]):.3f}"
        for share in cell["cut"]:
            right = [one["cut"][share]["test"] for one in found]
            rows.append([f"{label}, at {share}", _mean(right), behind, passes, chosen])
    return table(["arm", "accuracy", "volume of the front", "passes", "settings"], rows)


def _said(arm: str) -> str:
    """Name of an arm for people: `alone-sst2-0.5` is "alone, sst2, at 0.5"; what has no task is of the languages."""
    for task in ("languages", "sst2"):
        if (found := re.fullmatch(rf"(.+)-{task}(?:-([\d.]+))?", arm)) is not None:
            return f"{found[1].replace('-', ' ')}, {task}" + (f", at {found[2]}" if found[2] else "")
    kind, _, share = arm.rpartition("-")
    return f"{kind.replace('-', ' ')}, languages, at {share}"


def _mean(tests: Sequence[str]) -> str:
    return f"{_elastic.points(tests):.2f}"


def _orders(result: Mapping[str, Any]) -> str:
    orders = result["cells"]["orders"]
    return table(["order", "accuracy"], [[order, f"{_elastic.points([right]):.2f}"] for order, right in orders.items()])


def _answers(result: Mapping[str, Any]) -> str:
    rows = answers.rows(result["cells"], result["seeds"])
    return table(["MiniLM", "F1 of words", "exact", "answered"], rows)


def _bounds(result: Mapping[str, Any]) -> str:
    cells = result["cells"]
    rows = [
        [name.replace("-", ", "), f"{one['least']:.4f}", f"{one['most']:.4f}"]
        for name, one in cells.items()
        if "least" in one
    ]
    return table(["space", "smallest", "largest"], rows)


def _line(result: Mapping[str, Any]) -> str:
    cells, seeds, found = result["cells"], result["seeds"], []
    for task in ("languages", "sst2"):
        made = [cells[f"scored-{task}-{seed}"]["cut"] for seed in seeds]
        cut = ", ".join(f"{_mean([one[share]['test'] for one in made])} % at {share}" for share in made[0])
        teacher = _mean([cells[f"teacher-{task}"]["test"]])
        found.append(f"{task}: {cut} of the multiply-accumulates (teacher: {teacher} %)")
    return f"MiniLM cut out of one super-network, {'; '.join(found)}."


_TABLES = _elastic.Tables(
    _line,
    {
        "MiniLM by EFTNAS: one super-network cut to shares of the multiply-accumulates, beside lists made by hand, the "
        "teacher, LoRA, and networks cut by torch-pruning and distilled alone (accuracy in points on held-out texts, "
        "mean of seeds; those with as many passes as a super-network are one seed).": _arms,
        "Half of all widths, untrained, by what sorted them:": _orders,
        "Multiply-accumulates of the ends of every space, as a share of the whole:": _bounds,
        "Answers in a text (SQuAD, the questions that its texts answer), articles that nothing was learnt from, in "
        "percent (mean of seeds). `clozes` learnt from questions made of other texts alone, the teacher from four "
        "hundred of SQuAD after them. There are far fewer than 1,800 questions, and so intervals are wide:": _answers,
        "Settings that were tried with one seed and shorter runs, on examples to choose by (accuracy in points; of "
        "super-networks the mean of the middle and the smallest, of networks distilled alone that of both sizes). Each "
        "arm was then trained with the best of the settings that are named with it, and else as usual.": _sweep.tried,
    },
    note=_elastic.RESAMPLED,
)
summary, page = _TABLES.summary, _TABLES.page
