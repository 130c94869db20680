"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks._markdown import Results, environment, inequalities, table
from benchmarks.shears.names import ARMS, CUTS, DECODER, ENCODER, MIDDLE, RANKS, SHARE, used

_ONE_THREAD = " (times: one)"


def summary(results: Results) -> str:
    """Return the README's line: one run for all ranks beside a run for each."""
    words = _of(results, ENCODER)
    alone = _each_rank(words["arms"])
    runs = [words["arms"]["nls"]["cuts"][f"{rank}"] for rank in RANKS], [alone[f"{rank}"][f"{rank}"] for rank in RANKS]
    one, each = (_listed([f"{cut['value']:.1f}" for cut in found]) for found in runs)
    return (
        f"{ENCODER} with half of its block weights zero and adapters of ranks "
        f"{_listed(RANKS)} tells languages apart with {one} % right from one run, {each} % from a run of LoRA for each."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    words, text = _of(results, ENCODER), _of(results, DECODER)
    parts = [environment(results, note=_ONE_THREAD)]
    parts += ["### Classes of texts", _accuracies(words), _rates(words), _sweep(words), _merging(words), _times(words)]
    parts += ["### Text", _before(text), *(_tuned(text, share) for share in text["tuned"]), _bytes(text), _times(text)]
    return "\n\n".join(filter(None, [*parts, inequalities(results)]))


def _of(results: Results, model: str) -> Mapping[str, Any]:
    return next(result for result in results if result["model"] == model)


def _texts(result: Mapping[str, Any]) -> str:
    data = result["data"]
    return (
        f"which of {data['languages']} languages {data['words']} words are in, {data['sizes']['test']:,} test texts of "
        "other articles than those learnt"
    )


def _windows(result: Mapping[str, Any]) -> str:
    count, length, _ = result["data"]["test"]
    steps = result["tuned"][f"{SHARE:g}"]["nls"]["steps"]
    return f"{steps} steps of {length} tokens; {count * length:,} test tokens of web text and Wikipedia"


def _listed(numbers: Sequence[object]) -> str:
    return ", ".join(map(str, numbers))


def _rows(found: Mapping[str, Any], show: Callable[[Mapping[str, Any]], str]) -> list[list[str]]:
    """Arms by rank, in their order; the LoRA arm as a run for each rank that was trained, and cut."""
    rows = []
    for arm, row in found.items():
        cuts = row["cuts"]
        if arm == "lora":
            own = _each_rank(found)
            rows.append(
                ["LoRA, a run for each rank", *(_shown(own.get(f"{rank}", {}), f"{rank}", show) for rank in RANKS)]
            )
            for how, prefix in (("naive", ""), ("svd", "svd ")):
                rows.append([CUTS[how], "", *(_shown(cuts, f"{prefix}{rank}", show) for rank in RANKS[1:])])
        elif ARMS[arm].ranks and not arm.startswith("lora-"):
            rows.append([ARMS[arm].label, *(_shown(cuts, f"{rank}", show) for rank in RANKS)])
    return rows


def _each_rank(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What the runs of LoRA with a rank of their own gave, by rank."""
    own = {f"{rank}": found[f"lora-{rank}"]["cuts"] for rank in RANKS if f"lora-{rank}" in found}
    return {**own, f"{RANKS[0]}": found["lora"]["cuts"]}


def _shown(cuts: Mapping[str, Any], cut: str, show: Callable[[Mapping[str, Any]], str]) -> str:
    return show(cuts[cut]) if cut in cuts else ""


def _by_rank(result: Mapping[str, Any]) -> list[list[str]]:
    return _rows(result["arms"], lambda cut: f"{cut['value']:.1f}")


def _text_rows(result: Mapping[str, Any], share: str) -> list[list[str]]:
    return _rows(result["tuned"][share], lambda cut: f"{cut['value']:.2f}")


def _accuracies(result: Mapping[str, Any]) -> str:
    heads = [
        f"{ARMS[arm].label}: {found['cuts']['']['value']:.1f}"
        for arm, found in result["arms"].items()
        if not ARMS[arm].ranks
    ]
    spread = max(max(c["per_seed"]) - min(c["per_seed"]) for c in result["arms"]["nls"]["cuts"].values())
    return (
        f"{ENCODER}: {_texts(result)} (the Universal Declaration of Human Rights), "
        f"{result['data']['sizes']['train']:,} learnt; {len(result['seeds'])} seeds of calibration, first weights, "
        f"batches and ranks, which move NLS by up to {spread:.1f} points; the same {result['arms']['nls']['steps']} "
        f"batches for all arms. Accuracy in per cent, mean over seeds (higher is better):\n\n"
        f"{table(['', *(f'rank {rank}' for rank in RANKS)], _by_rank(result))}\n\n"
        f"NLS is used with rank {MIDDLE} when nothing is searched. {'; '.join(heads)}."
    )


def _rates(result: Mapping[str, Any]) -> str:
    rows = []
    for arm, found in result["arms"].items():
        if ARMS[arm].rate == arm and found["tried"]:
            tried = "; ".join(f"{rate}: {100 * value:.1f}" for rate, value in found["tried"].items())
            first, last = found["loss"]
            rows.append([ARMS[arm].label, tried, f"{found['rate']:g}", f"{first:.2f} → {last:.2f}"])
    head = ["learning rates tried (validation accuracy, seed 0)", "", "used", "training loss"]
    return (
        f"{table(head, rows)}\n\nArms that are not listed use the rate of LoRA, those with several ranks that of NLS."
    )


def _sweep(result: Mapping[str, Any]) -> str:
    """What other settings do to the accuracy of every rank; nothing where none were tried."""
    rows = [
        [ARMS[arm].label, f"{knob} {value}", *(f"{cuts[f'{rank}']:.1f}" if f"{rank}" in cuts else "" for rank in RANKS)]
        for arm, knobs in result["sweep"].items()
        for knob, values in knobs.items()
        for value, cuts in values.items()
    ]
    if not rows:
        return ""
    head = ["", "set", *(f"rank {rank}" for rank in RANKS)]
    whole = len(RANKS) * result["arms"]["nls"]["steps"]
    return (
        f"Other settings, one at a time (seed {result['seeds'][0]} alone; the first of each is the usual one). {whole} "
        f"steps are as many as a run for each rank takes together:\n\n"
        f"{table(head, rows)}"
    )


def _merging(result: Mapping[str, Any]) -> str:
    rows = []
    for arm in ("masked", "quantised", "lora"):
        found = result["merging"][arm]
        shares = (f"{found[key] / found['numel']:.1%}" for key in ("zeros_before", "zeros_after"))
        rows.append([ARMS[arm].label, *shares, f"{found['revived']:,}", f"{found['difference']:.1e}"])
    head = ["merged into the adapted layers", "zeros before", "after", "zeros lost", "largest difference of logits"]
    return f"All seeds, rank {used(ARMS['masked'])} (LoRA: {used(ARMS['lora'])}):\n\n{table(head, rows)}"


def _times(result: Mapping[str, Any]) -> str:
    rows = [
        [ARMS[arm].label, f"{1e3 * row['step']:.0f} ms", f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"]
        for arm, row in result["speed"].items()
    ]
    return table([f"step of {result['model']}, in turns", "median", "÷ LoRA [95 %]"], rows)


def _before(result: Mapping[str, Any]) -> str:
    shares = list(result["before"])
    head = ["zeros in every row", *(f"{float(share):.0%}" for share in shares)]
    labels = {"wanda": "**Wanda**", "magnitude": "magnitude"}
    rows = [
        [label, *(_ppl(result["before"][share][kind]["value"]) for share in shares)] for kind, label in labels.items()
    ]
    return (
        f"{DECODER}, perplexity before tuning (dense: {_ppl(result['dense']['value'])}; lower is better):\n\n"
        f"{table(head, rows)}"
    )


def _tuned(result: Mapping[str, Any], share: str) -> str:
    count = len(result["tuned_seeds"][share])
    zeros = f"{float(share):.0%} zeros, perplexity ({count} seed{'s' if count > 1 else ''})"
    head = [zeros, *(f"rank {rank}" for rank in RANKS)]
    text = table(head, _text_rows(result, share))
    if share != f"{SHARE:g}":
        return text
    tried = []
    for arm in ("nls", "lora"):
        found = result["tuned"][share][arm]
        losses = ", ".join(f"{rate}: {value:.3f}" for rate, value in found["tried"].items())
        tried.append(f"{ARMS[arm].label} {losses}")
    return (
        f"{_windows(result)}. Learning rates tried at {float(share):.0%} zeros "
        f"(validation loss, seed 0): {'; '.join(tried)}.\n\n{text}"
    )


def _bytes(result: Mapping[str, Any]) -> str:
    sizes = result["bytes"]
    whole = sizes["sparse"] + sizes["adapters"]
    return (
        f"{DECODER} in float32 files: dense {sizes['dense'] / 1e6:.1f} MB; with half of the block weights zero, "
        f"compressed, {sizes['sparse'] / 1e6:.1f} MB and adapters of rank {MIDDLE} {sizes['adapters'] / 1e6:.1f} MB, "
        f"together {whole / sizes['dense']:.0%}."
    )


def _ppl(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.2g}"
