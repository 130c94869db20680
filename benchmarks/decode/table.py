"""Markdown of the claim's stored results: a line for the README, the whole for the engine's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._markdown import Results, environment, inequalities, of_bandwidth, table
from benchmarks.decode.names import SPARSE, llama

_PROMPT = 512


def summary(results: Results) -> str:
    """Return the README's line: decoding on one thread, beside llama.cpp with as many bits."""
    model = results[0]["models"][0]
    rows, ppl = results[0]["tables"][f"{model}-short-1"]["rows"], results[0]["ppl"][model]
    (mine, own), (theirs, other) = (
        (rows[arm]["decode"]["value"], _ppl(ppl[arm])) for arm in ("nested 4 bits", llama("Q4_1"))
    )
    return (
        f"{model} on one thread at {mine:.0f} tokens/s from 4 bits, where "
        f"llama.cpp reaches {theirs:.0f} (Q4_1), with perplexity {own} and {other}."
    )


def page(results: Results) -> str:
    """Return all tables of the engine's page."""
    parts = [environment(results)]
    for result in results:
        parts.append(
            f"llama.cpp says of itself: `{result['llama_cpp']}`. Its types other than the one that a model comes as "
            "are made from that file's weights by its own quantiser, and so are nested weights unless their blocks are "
            "the file's; OpenVINO's rows are there where it is installed."
        )
        for name, found in result["tables"].items():
            parts += [f"### {_title(name)}", _rows(result, name, found)]
        for name, found in result["linears"].items():
            parts += [f"### Linear layers alone, threads: {name.split('-')[-1]}", _linears(found)]
        parts += ["### Integer activations, and transformers", _modes(result)]
    return "\n\n".join([*parts, inequalities(results)])


def _title(name: str) -> str:
    model, kind, threads = name.rsplit("-", 2)
    what = {
        "short": "a prompt of 16 and 48 new tokens",
        "long": f"a prompt of {_PROMPT} and 16 new tokens",
        "wanda": "half of the block weights pruned by Wanda, a prompt of 16 and 48 new tokens",
    }[kind]
    return f"{model}: {what}, threads: {threads}"


def _rows(result: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> str:
    model = name.rsplit("-", 2)[0]
    rows = [
        [
            arm,
            _speed(row["decode"]),
            f"{row['prefill']:.0f}",
            f"{row['mb']:.0f}",
            of_bandwidth(row),
            _ppl(result["ppl"][model].get(arm)),
            row["note"] or SPARSE.get(arm, ""),
        ]
        for arm, row in found["rows"].items()
    ]
    head = ["", "decode, tokens/s [95 %]", "prompt, tokens/s", "MB a token", "of the bandwidth", "perplexity", ""]
    return table(head, rows)


def _linears(found: Mapping[str, Any]) -> str:
    rows = []
    for bits, row in found["rows"].items():
        faster = row["faster"]
        shown = f"{faster['value']:.2f} [{faster['low']:.2f}, {faster['high']:.2f}]"
        rows.append([f"{bits} bits", f"{row['mb']:.0f}", f"{row['ms']:.2f}", of_bandwidth(row), shown])
    return table(["", "MB", "ms", "of the bandwidth", "× 4 bits"], rows)


def _modes(result: Mapping[str, Any]) -> str:
    rows = []
    for model in result["models"]:
        modes, greedy = result["modes"][model], result["greedy"][model]
        equal = f"{greedy['equal']} of {greedy['prompts']}"
        rows.append([model, f"{modes['ratio']:.4f}", f"{modes['kl']:.4f}", f"{modes['agreement']:.1%}", equal])
    head = [
        "",
        "perplexity, integer ÷ fp32 activations",
        "KL, nats",
        "same likeliest token",
        "greedy texts equal to transformers'",
    ]
    return table(head, rows)


def _speed(one: Mapping[str, Any]) -> str:
    return f"{one['value']:.0f} [{one['low']:.0f}, {one['high']:.0f}]"


def _ppl(one: Mapping[str, Any] | None) -> str:
    return "–" if one is None else f"{one['value']:.2f}"
