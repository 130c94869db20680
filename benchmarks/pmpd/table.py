"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._markdown import Results, environment, inequalities, of_bandwidth, table
from benchmarks.pmpd.names import SCHEDULERS


def summary(results: Results) -> str:
    """Return the README's line: half of the tokens at more bits, first or last."""
    found = []
    for case in results[0]["cases"].values():
        by_name = {point["name"]: point for point in case["points"]}
        first, last = (by_name[f"{way} first, 50% high"]["kl"]["value"] for way in ("high", "low"))
        found.append(f"{first:.3f} or {last:.3f} ({case['model']}, {case['high']} and {case['low']} bits)")
    return (
        "half of an answer's tokens at more bits, first or last, differ from more "
        f"bits alone by {'; '.join(found)} nats per token."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    parts = [environment(results)]
    for result in results:
        for case in result["cases"].values():
            parts += [
                f"### {case['model']}, {case['high']} and {case['low']} bits",
                _setting(result, case),
                _points(case),
                _speed(case),
            ]
    listed = "\n".join(f"- {word}: {what}" for word, what in SCHEDULERS.items())
    return "\n\n".join([*parts, listed, inequalities(results)])


def _setting(result: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    return (
        f"{result['prompts']} prompts of {result['prompt']} tokens ({result['text']}) and {result['tokens']} new ones; "
        f"schedulers are made from {result['learnt_from']} other texts, with a limit of {case['limit']:.4f} nats, at "
        f"which one T for all would be {case['static']}. The last column is positive where a schedule is better than "
        "the chord between the two precisions."
    )


def _points(case: Mapping[str, Any]) -> str:
    rows = [
        [
            point["name"],
            f"{point['bits']:.2f}",
            _interval(point["kl"]),
            f"{point['chord']:.4f}",
            _interval(point["above"]),
        ]
        for point in case["points"]
    ]
    return table(["schedule", "mean bits", "KL, nats [95 %]", "chord", "chord − KL [95 %]"], rows)


def _speed(case: Mapping[str, Any]) -> str:
    rows = []
    for threads, found in case["speed"].items():
        for name, row in found["rows"].items():
            faster = row["faster"]
            rows.append(
                [
                    f"{name}, threads: {threads}",
                    f"{row['tokens']:.0f}",
                    f"{row['mb']:.0f}",
                    of_bandwidth(row),
                    f"{faster['value']:.2f} [{faster['low']:.2f}, {faster['high']:.2f}]",
                    f"{found['deciding']:.2%}" if name == "half" else "",
                ]
            )
    head = ["", "tokens/s", "MB a token", "of the bandwidth", "× more bits alone", "deciding ÷ decoding"]
    return table(head, rows)


def _interval(one: Mapping[str, Any]) -> str:
    return f"{one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"
