"""From cells to stored results and inequalities."""

# S seeds, n test windows

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks._frame import Inequality
from benchmarks.mamba_shedder import hybrid, quality, speed
from benchmarks.mamba_shedder.names import (
    ARMS,
    CONTEXTS,
    COUNTS,
    OTHERWISE,
    RECOVERY_RATES,
    SCANLESS,
    TARGETS,
    Scale,
    seeds,
)
from benchmarks.mamba_shedder.texts import texts
from benchmarks.multipruner.measuring import median_row
from lissome.models.zoo import zoo
from lissome.ops.stats import paired_bootstrap

GOAL = 1.4
_PROPORTION = 0.8
_EXACT = 1e-5
_ALIKE = 1e-6  # nats of a window between two computations of one model in float32


def judge(name: str, cells: Mapping[str, Any], scale: Scale) -> tuple[dict[str, Any], list[Inequality]]:
    """Turn the cells of a pure model into its stored result and its inequalities."""
    dense = cells[f"{name}-dense"]
    result: dict[str, Any] = {
        "model": name, "seeds": list(scale.seeds), "zoo": zoo_facts(name), "text": facts(),
        "dense": {**{key: value for key, value in dense.items() if key != "nll"}, "bits": quality.bits(dense["nll"])},
    }  # fmt: skip
    result["arms"], result["pairs"], result["otherwise"], found = {}, {}, {}, list[Inequality]()
    for target in TARGETS:
        for count in COUNTS:
            arms, more = _compare(name, target, count, cells, scale)
            result["arms"][f"{target} {count}"] = arms
            found += more
        result["otherwise"][target] = {
            how: {count: loss / math.log(2) for count, loss in cells[f"{name}-{target}-{how}"]["at"].items()}
            for how in OTHERWISE
        }
        losses = sorted(cells[f"{name}-{target}-pairs"]["nll"].values())
        result["pairs"][target] = {"best": losses[0] / math.log(2), "n": len(losses)}
    for part in ("exactness", "speed"):
        result[part] = cells[f"{name}-{part}"]
    result["curve"] = {target: cells[f"{name}-{target}-curve"] for target in TARGETS}
    narrower = cells[f"{name}-narrower"]["at"]
    result["narrower"] = {count: quality.bits(losses) for count, losses in narrower.items()}
    found += [
        Inequality.of(f"{name}: {what}, difference of logits", value, "<=", _EXACT)
        for what, value in result["exactness"].items()
    ]
    found += _judge_speed(name, result["speed"])
    result["context"], more = _judge_context(name, cells[f"{name}-context"])
    found += more
    result["recovery"], one = _judge_recovery(name, cells, dense)
    if f"{name}-shorter" in cells:
        cell = cells[f"{name}-shorter"]
        result["shorter"] = {"layers": cell["layers"], "bits": quality.bits(cell["nll"])}
    return result, [*found, one]


def facts() -> dict[str, Any]:
    """What the results say of their text."""
    return texts(0).facts()


def zoo_facts(name: str) -> dict[str, Any]:
    """What the results say of a model's training."""
    known = zoo()[name]
    return {"summary": known.summary, "bits_per_byte": dict(known.bits_per_byte)}


def _losses(cells: Mapping[str, Any], prefix: str, count: str, numbers: Sequence[int]) -> Tensor:
    """Loss by seed and test window, float64 [S, n]."""
    return torch.tensor([cells[f"{prefix}-{seed}"]["at"][count] for seed in numbers], dtype=torch.float64)


def _compare(
    name: str, target: str, count: int, cells: Mapping[str, Any], scale: Scale
) -> tuple[dict[str, Any], list[Inequality]]:
    """Compare all arms after one number of removals; each seed's mean loss counts once."""
    losses = {arm: _losses(cells, f"{name}-{target}-{arm}", str(count), seeds(arm, scale)) for arm in ARMS}
    mine, rows, found = losses["greedy"].mean(0), dict[str, Any](), list[Inequality]()
    for arm, values in losses.items():
        centre = median_row(values) if arm == "random" else values.mean(0)
        same = alike(losses["greedy"], centre if arm == "random" else values)
        apart, detail = _apart(mine, centre, f"{len(values)} seeds{_told(same, len(scale.seeds))}")
        per_seed = [quality.bits(row) for row in values.tolist()]
        rows[arm] = {
            "bits": quality.bits(centre.tolist()), "per_seed": per_seed, "greedy_minus_this": apart, "alike": same,
        }  # fmt: skip
        if arm in ("influence", "random", "one-shot"):
            label = f"{name} without {count} {TARGETS[target]}: bits per byte, greedy against {arm}"
            left, right = quality.bits(mine.tolist()), quality.bits(centre.tolist())
            found.append(Inequality.of(label, left, "<=" if arm == "one-shot" else "<", right, detail))
    return rows, found


def alike(mine: Tensor, other: Tensor) -> int:
    """Seeds with which two ways remove the same: then all test windows, float64 [S, n] (or one row), lose the same."""
    return int(torch.isclose(mine, other, rtol=0.0, atol=_ALIKE).all(1).sum())


def _apart(mine: Tensor, other: Tensor, more: str) -> tuple[dict[str, float], str]:
    """Difference of the losses of all test windows, float64 [n] each: in bits with its interval, and in words."""
    change = paired_bootstrap(((mine - other) / math.log(2)).numpy())
    found = {key: getattr(change, key) for key in ("value", "low", "high")}
    words = f"difference {change.value:+.3f}, 95 % {change.low:+.3f} to {change.high:+.3f}, n={change.n} windows"
    return found, f"({words}, {more})"


def _told(same: int, count: int) -> str:
    return f"; the same removals with {same} of {count} calibration seeds" if same else ""


def _judge_speed(name: str, cell: Mapping[str, Any]) -> list[Inequality]:
    whole, found = cell["rows"]["original"]["blocks"], []
    for count in COUNTS:
        net, bound = speed.net_speedup(cell, f"blocks-{count}"), _PROPORTION * whole / (whole - count)
        label = f"{name} without {count} of {whole} blocks: decode speed-up net of the head"
        found.append(Inequality.of(label, net, ">=", bound, f"(0.8 × {whole}/{whole - count})"))
    reached = cell["rows"][f"blocks-{max(COUNTS)}"]["decode"]
    detail = f"(95 % {reached['low']:.2f}–{reached['high']:.2f}; loss: see the table)"
    label = f"{name} without {max(COUNTS)} of {whole} blocks: decode speed-up"
    found.append(Inequality.of(label, reached["value"], ">=", GOAL, detail))
    for length in map(str, speed.LENGTHS):
        faster = cell["rows"][SCANLESS]["prefill"][length]
        label = f"{name} without scans: speed-up of a prompt of {length}"
        detail = (
            f"(95 % {faster['low']:.2f}–{faster['high']:.2f}; the scan's share is {cell['scan_share'][length]:.0%})"
        )
        found.append(Inequality.of(label, faster["value"], ">", 1.0, detail))
    return found


def _judge_context(name: str, cell: Mapping[str, Any]) -> tuple[dict[str, Any], list[Inequality]]:
    """What scans cost with far context, beyond what they cost with four bytes of it."""
    rows = {name: {size: quality.bits(losses) for size, losses in found.items()} for name, found in cell.items()}
    near, far = (str(size) for size in (CONTEXTS[0], CONTEXTS[-1]))
    lost = {
        size: torch.tensor(cell[SCANLESS][size], dtype=torch.float64) - torch.tensor(cell["original"][size])
        for size in (near, far)
    }
    more = paired_bootstrap(((lost[far] - lost[near]) / math.log(2)).numpy())
    return rows, [
        Inequality.of(
            f"{name} without scans: bits per byte lost with {far} bytes of context, beyond those lost with {near}",
            more.value, ">", 0.0, f"(95 % {more.low:.3f}–{more.high:.3f}, n={more.n} windows)",
        )
    ]  # fmt: skip


def _judge_recovery(name: str, cells: Mapping[str, Any], dense: Mapping[str, Any]) -> tuple[dict[str, Any], Inequality]:
    tried = {f"{rate:g}": cells[f"{name}-recovery-{rate:g}"] for rate in RECOVERY_RATES}
    rate = min(tried, key=lambda one: tried[one]["choice"])
    cell = tried[rate]
    before, after, whole = (
        torch.tensor(row, dtype=torch.float64) for row in (cell["before"], cell["after"], dense["nll"])
    )
    lost, back = float((before - whole).mean()), paired_bootstrap((before - after).numpy())
    shares = {key: getattr(back, key) / lost for key in ("value", "low", "high")}
    found = Inequality.of(
        f"{name} without {max(COUNTS)} blocks: share of lost bits that {cell['seconds'] / 60:.1f} minutes give back",
        shares["value"], ">=", 0.5, f"(95 % {shares['low']:.2f}–{shares['high']:.2f}, n={back.n} windows)",
    )  # fmt: skip
    facts = {"before": quality.bits(cell["before"]), "after": quality.bits(cell["after"]), "seconds": cell["seconds"]}
    facts["tried"] = {one: quality.bits(other["after"]) for one, other in tried.items()}
    return {**facts, "rate": rate, "given_back": shares}, found


def judge_hybrid(name: str, cells: Mapping[str, Any], scale: Scale) -> tuple[dict[str, Any], list[Inequality]]:
    """Compare the ways to remove from a hybrid at equal block parameters."""
    dense, rows, found = cells[f"{name}-dense"], dict[str, Any](), list[Inequality]()
    for share in map(str, hybrid.SHARES):
        losses = {arm: _losses(cells, f"{name}-{arm}", share, scale.seeds) for arm in hybrid.ARMS}
        same = {arm: alike(losses["auto"], loss) for arm, loss in losses.items()}
        rows[share] = {
            arm: {"bits": quality.bits(loss.mean(0).tolist()), "alike": same[arm]} for arm, loss in losses.items()
        }
        told = f"{len(scale.seeds)} seeds{_told(same['transformer'], len(scale.seeds))}"
        _, detail = _apart(losses["auto"].mean(0), losses["transformer"].mean(0), told)
        label = f"{name} at {float(share):.0%} of its blocks: bits per byte, all parts no worse than attention and MLP"
        left, right = (rows[share][arm]["bits"] for arm in ("auto", "transformer"))
        found.append(Inequality.of(label, left, "<=", right, detail))
    return {
        "model": name, "seeds": list(scale.seeds), "zoo": zoo_facts(name), "text": facts(), "shares": rows,
        "dense": {**{key: value for key, value in dense.items() if key != "nll"}, "bits": quality.bits(dense["nll"])},
    }, found  # fmt: skip
