"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._markdown import Results, environment, inequalities, table
from benchmarks.multipruner.names import LABELS, TASKS


def summary(results: Results) -> str:
    """Return the README's line: each model at its smallest target, beside the best of the baselines."""
    found = []
    for result in results:
        target = min(result["targets"], key=float)
        ppl = {arm: cell["ppl"] for arm, cell in result["targets"][target].items()}
        best = min((arm for arm in ppl if arm not in {"auto", "blocks"}), key=lambda arm: float(ppl[arm]["value"]))
        found.append(
            f"{result['model']} with {float(target):.0%} of its blocks has perplexity {_ppl(ppl['auto'])} (whole: "
            f"{_ppl(result['dense']['ppl'])}; {LABELS[best]}: {_ppl(ppl[best])})"
        )
    return f"without any training, {'; '.join(found)}."


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    parts = [f"Text: {results[0]['text']['source']}; {_of(results[0])}.", environment(results)]
    parts += ["### Perplexity", _perplexities(results), _ratios(results)]
    parts += [_dense(results), "### Zero-shot accuracy and closeness to the original", *map(_choice, results)]
    for result in results:
        if "search" in result:
            parts += ["### Time of the search", _search(result)]
        if "recovery" in result:
            parts += ["### Recovery", _recovery(result)]
        if "ablation" in result:
            parts += ["### Other splits and orders", _ablation(result)]
    return "\n\n".join([*parts, inequalities(results)])


def _of(result: Mapping[str, Any]) -> str:
    windows, length = result["text"]["test"][0]
    rows, tokens = result["text"]["calibration"][0]
    seeds = len(result["seeds"])
    return (
        f"{windows * length:,} test tokens, {rows} × {tokens} calibration tokens, {seeds} calibration seeds "
        "(the geometric mean is shown), read off each method's curve at exactly that share"
    )


def _perplexities(results: Results) -> str:
    targets = list(results[0]["targets"])
    head = ["", *(f"{result['model']} at {float(target):.0%}" for result in results for target in targets)]
    rows = [["original", *(_ppl(result["dense"]["ppl"]) for result in results for _ in targets)]]
    for arm, label in LABELS.items():
        rows.append([label, *(_ppl(result["targets"][t][arm]["ppl"]) for result in results for t in targets)])
    return table(head, rows)


def _ppl(metric: Mapping[str, Any]) -> str:
    value = float(metric["value"])
    return f"{value:.1f}" if value < 1000 else f"{value:.2g}"


def _ratios(results: Results) -> str:
    targets = list(results[0]["targets"])
    head = ["auto's perplexity ÷ this one's", *(f"{r['model']} at {float(t):.0%}" for r in results for t in targets)]
    rows = []
    for arm, label in LABELS.items():
        cells = [result["targets"][target][arm]["auto_to_this"] for result in results for target in targets]
        if arm != "auto":
            rows.append([label, *(f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in cells)])
    return "Paired over windows, 95 % bootstrap intervals:\n\n" + table(head, rows)


def _dense(results: Results) -> str:
    lines = []
    for result in results:
        dense, ppl = result["dense"], result["dense"]["ppl"]
        lines.append(
            f"- {result['model']}: {dense['params'] / 1e6:.1f}M parameters, {dense['block_params'] / 1e6:.1f}M of them "
            f"in the blocks and {dense['embedding_params'] / 1e6:.1f}M embeddings; perplexity {ppl['value']:.2f} "
            f"[{ppl['low']:.2f}, {ppl['high']:.2f}]. Searches and tests multiply in the machine's fastest number type; "
            f"against float32 this changes the original's perplexity × {dense['dtype_ratio']:.4f}."
        )
    return "\n".join(lines)


def _choice(result: Mapping[str, Any]) -> str:
    head = [result["model"], "share", *TASKS, "all", "all − original [95 %]", "KL, nats", "same top token"]
    rows = []
    for label, row in result["choice"].items():
        accuracies = [f"{row[task]['acc']:.1%}" for task in (*TASKS, "all")]
        tail = ["", "", ""]
        if "difference" in row["all"]:
            change = row["all"]
            tail[0] = f"{change['difference']:+.1%} [{change['low']:+.1%}, {change['high']:+.1%}]"
            tail[1:] = [f"{row['kl']['value']:.3f}", f"{row['agreement']['value']:.1%}"]
        rows.append([label, f"{row['share']:.1%}" if "share" in row else "100 %", *accuracies, *tail])
    questions = result["choice"]["dense"]["all"]["n"]
    return table(head, rows) + (
        f"\n\n{questions} questions in all, the same for every row (higher is better); of each curve the point nearest "
        "to the target, calibration seed 0."
    )


def _search(result: Mapping[str, Any]) -> str:
    runs = result["search"]["runs"]
    rows = [
        [
            kind,
            f"{run['cpu']:.0f}",
            f"{run['cpu'] / runs['naive']['cpu']:.2f}",
            f"{run['block_cpu']:.0f}",
            f"{run['block_cpu'] / runs['naive']['block_cpu']:.2f}",
            f"{run['wall']:.0f}",
            str(sum(run["scored"])),
        ]
        for kind, run in runs.items()
    ]
    head = ["search", "CPU, s", "÷ naive", "in blocks, s", "÷ naive", "wall, s", "candidates scored"]
    return (
        f"{result['model']}, {result['search']['steps']} accepted steps of whole blocks, the three variants step by "
        f"step in turns in one process (lower is better):\n\n{table(head, rows)}"
    )


def _recovery(result: Mapping[str, Any]) -> str:
    found = result["recovery"]
    return (
        f"{result['model']} at {found['share']:.1%} of its block parameters: {found['seconds'] / 60:.1f} minutes of "
        f"LoRA ({found['steps']} steps) bring held-out perplexity from {found['before']['value']:.1f} to "
        f"{found['after']['value']:.1f} (original {result['dense']['ppl']['value']:.1f}): {found['given_back']:.0%} "
        f"[{found['low']:.0%}, {found['high']:.0%}] of the lost log-perplexity is back."
    )


def _ablation(result: Mapping[str, Any]) -> str:
    per_seed = result["targets"]["0.9"]
    rows = [["auto", f"{per_seed['auto']['per_seed'][0]:.1f}"], ["100:0:0", f"{per_seed['blocks']['per_seed'][0]:.1f}"]]
    rows += [[arm, _ppl(metric)] for arm, metric in result["ablation"].items()]
    return f"{result['model']} at 90 %, calibration seed 0:\n\n" + table(["split", "perplexity"], rows)
