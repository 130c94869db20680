"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._markdown import Results, environment, inequalities, table
from benchmarks.mamba_shedder.names import ARMS, BLOCKS, CONTEXTS, COUNTS, HYBRID, OTHERWISE, PURE, TARGETS, VARIANTS

_LENGTH = "512"
"""Prompt tokens at which blocks and scans are compared at equal time."""
_PAIR = 2
_SAME = "=: the same removals as those of Mamba-Shedder, with every seed."
_HINDSIGHT = "the best of all pairs, by the test text itself"
_HYBRID = {
    "auto": "**Mamba-Shedder, all parts compete**",
    "stages": "**Mamba-Shedder, the paper's stages** (60:30:10)",
    "blocks": "Mamba-Shedder, whole blocks, attentions and MLPs",
    "transformer": "MultiPruner: attentions, MLPs and their channels alone",
}


def summary(results: Results) -> str:
    """Return the README's line: the first model with most scans or blocks less."""
    first, count = next(result for result in results if result["model"] in PURE), max(COUNTS)
    kept, scans, blocks = (
        first["dense"]["bits"],
        *(first["arms"][f"{target} {count}"]["greedy"]["bits"] for target in ("ssm", "blocks")),
    )
    return (
        f"{first['model']}, a small Mamba trained here, at "
        f"{kept:.3f} bits per byte, {scans:.3f} without {count} of its 12 scans, {blocks:.3f} without {count} blocks."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    pure = [result for result in results if result["model"] in PURE]
    parts = [
        f"Text: {results[0]['text']['source']}; {_of(results[0])}.",
        _models(results),
        environment(results, note=" (times: one)"),
    ]
    parts += ["### What to remove", _arms(results), _otherwise(pure), _beside(pure)]
    parts += ["### Blocks or scans", *map(_granularity, pure), "### Far context", *map(_context, pure)]
    parts += ["### Recovery", *map(_recovery, pure)]
    parts += ["### A hybrid", *(_hybrid(result) for result in results if result["model"] == HYBRID)]
    return "\n\n".join([*parts, inequalities(results)])


def _of(result: Mapping[str, Any]) -> str:
    windows, length = result["text"]["test"][0]
    rows, size = result["text"]["calibration"][0]
    return (
        f"{windows * length:,} test bytes, {rows} × {size} calibration bytes, {len(result['seeds'])} calibration seeds "
        "(their mean is shown)"
    )


def _models(results: Results) -> str:
    lines = []
    for result in results:
        known = ", ".join(f"{source} {value:.3f}" for source, value in result["zoo"]["bits_per_byte"].items())
        lines.append(
            f"- {result['model']}: {result['zoo']['summary']}; {result['dense']['params'] / 1e6:.2f}M parameters, "
            f"{result['dense']['block_params'] / 1e6:.2f}M of them in the blocks; bits per byte: {known}."
        )
    return "\n".join(lines)


def _arms(results: Results) -> str:
    columns, head = _removals([result for result in results if result["model"] in PURE])
    rows = [["original", *(f"{result['dense']['bits']:.3f}" for result, _, _ in columns)]]
    for arm, label in ARMS.items():
        cells = [(result, result["arms"][f"{target} {count}"][arm]) for result, target, count in columns]
        rows.append([label, *(f"{cell['bits']:.3f}{_mark(arm, cell, result)}" for result, cell in cells)])
    best = [result["pairs"][target] if count == _PAIR else None for result, target, count in columns]
    rows.append([_HINDSIGHT, *(f"{found['best']:.3f}" if found else "" for found in best)])
    return f"{table(head, rows)}\n\n{_SAME}"


def _mark(arm: str, cell: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Marks another arm that removes what the method removes."""
    return " =" if arm not in {"greedy", "auto"} and cell["alike"] == len(result["seeds"]) else ""


def _removals(pure: Results) -> tuple[list[tuple[Mapping[str, Any], str, int]], list[str]]:
    """Columns of a table over models, targets and numbers of removals, and its head."""
    columns = [(result, target, count) for result in pure for target in TARGETS for count in COUNTS]
    return columns, ["", *(f"{result['model']}, {count} {TARGETS[target]} less" for result, target, count in columns)]


def _otherwise(results: Results) -> str:
    """What becomes of the method's choice when it goes by something else."""
    columns, head = _removals(results)
    cells = [result["arms"][f"{target} {count}"]["greedy"]["per_seed"][0] for result, target, count in columns]
    rows = [["as above", *(f"{bits:.3f}" for bits in cells)]]
    for how, label in OTHERWISE.items():
        found = [result["otherwise"][target][how][str(count)] for result, target, count in columns]
        rows.append([label, *(f"{bits:.3f}" for bits in found)])
    return f"With something else to choose by, calibration seed {results[0]['seeds'][0]}:\n\n{table(head, rows)}"


def _beside(results: Results) -> str:
    """What else could be done with the parameters that blocks less leave."""
    head = ["bits per byte", *(f"{result['model']}, {count} blocks less" for result in results for count in COUNTS)]
    rows = [
        [
            "Mamba-Shedder",
            *(f"{r['arms'][f'blocks {count}']['greedy']['bits']:.3f}" for r in results for count in COUNTS),
        ],
        ["all mixers narrower instead", *(f"{r['narrower'][str(count)]:.3f}" for r in results for count in COUNTS)],
    ]
    known = [result["shorter"] for result in results if "shorter" in result]
    if known:
        left = [(result.get("shorter"), BLOCKS - count) for result in results for count in COUNTS]
        cells = [f"{one['bits']:.3f}" if one and one["layers"] == layers else "" for one, layers in left]
        rows.append([f"trained with {known[0]['layers']} blocks, as long", *cells])
    return f"At equal parameters in the blocks, without recovery:\n\n{table(head, rows)}"


def _granularity(result: Mapping[str, Any]) -> str:
    times = result["speed"]
    lengths, rows = list(times["scan_share"]), []
    for name, (target, count) in {"original": ("blocks", 0), **VARIANTS}.items():
        row, curve = times["rows"][name], result["curve"][target]
        speeds = [f"{row['prefill'][length]['value']:.2f}×" for length in lengths]
        share = curve["block_params"][count] / curve["block_params"][0]
        same = [_as_fast(result, name, phase) for phase in ("decode", _LENGTH)] if target == "ssm" else ["", ""]
        rows.append(
            [_label(name), f"{curve['bits'][count]:.3f}", f"{share:.0%}", f"{row['held'] / 1024:.0f} KiB",
             f"{row['decode']['value']:.2f}×", *speeds, *same]
        )  # fmt: skip
    prompts = [f"prompt of {length}" for length in lengths]
    equal = ["blocks, as fast in decode", f"blocks, as fast at {_LENGTH}"]
    head = [result["model"], "bits per byte", "block parameters", "states", "decode", *prompts, *equal]
    shares = ", ".join(f"{share:.0%} at {length}" for length, share in times["scan_share"].items())
    step = times["rows"]["original"]["seconds"]["step"]
    return (
        f"{table(head, rows)}\n\nSpeeds against the original, in turns, batch 1; a decode step of it takes "
        f"{1e3 * step:.2f} ms, {1e3 * times['outside']:.2f} ms of which beside the blocks. The scan, in chunks, takes "
        f"this share of a prompt, the most that removing scans can save: {shares}. The last columns: bits per byte of "
        "so many blocks less as make it as fast, time being linear in blocks."
    )


def _as_fast(result: Mapping[str, Any], name: str, phase: str) -> str:
    """Loss at the number of blocks less that saves as much time, on the curve of blocks."""
    rows, most = result["speed"]["rows"], max(COUNTS)

    def saved(variant: str) -> float:
        row = rows[variant]
        return 1 - 1 / float((row["decode"] if phase == "decode" else row["prefill"][phase])["value"])

    number, losses = most * saved(name) / saved(f"blocks-{most}"), result["curve"]["blocks"]["bits"]
    if not 0 <= number < len(losses) - 1:
        return f"({number:.1f} blocks)"
    below, part = int(number), number % 1
    return f"{(1 - part) * losses[below] + part * losses[below + 1]:.3f} ({number:.1f} blocks)"


def _context(result: Mapping[str, Any]) -> str:
    head = [f"{result['model']}, bits per byte", *(f"{size} bytes of context" for size in CONTEXTS)]
    rows = [[_label(name), *(f"{row[str(size)]:.3f}" for size in CONTEXTS)] for name, row in result["context"].items()]
    return table(head, rows)


def _label(variant: str) -> str:
    target, count = VARIANTS.get(variant, ("", 0))
    return f"{count} {TARGETS[target]} less" if count else variant


def _recovery(result: Mapping[str, Any]) -> str:
    found, share, dense = result["recovery"], result["recovery"]["given_back"], result["dense"]["bits"]
    tried = " / ".join(f"{bits:.3f} ({rate})" for rate, bits in found["tried"].items())
    return (
        f"{result['model']} without {max(COUNTS)} blocks: {found['seconds'] / 60:.1f} minutes of training bring the "
        f"loss from {found['before']:.3f} to {found['after']:.3f} bits per byte (original {dense:.3f}): "
        f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}] of what was lost is back. "
        f"The learning rate, {found['rate']}, is the best of {len(found['tried'])} on text of other documents; "
        f"on the test text they end at {tried}."
    )


def _hybrid(result: Mapping[str, Any]) -> str:
    head = ["bits per byte", *(f"at {float(share):.0%} of the block parameters" for share in result["shares"])]
    rows = [["original", *(f"{result['dense']['bits']:.3f}" for _ in result["shares"])]]
    for arm, label in _HYBRID.items():
        cells = [row[arm] for row in result["shares"].values()]
        rows.append([label, *(f"{cell['bits']:.3f}{_mark(arm, cell, result)}" for cell in cells)])
    return f"{table(head, rows)}\n\n{_SAME}"
