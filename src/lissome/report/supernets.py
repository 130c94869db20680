"""Lays out what `supernet` and `extract` answer, for a terminal."""

from __future__ import annotations

from pathlib import Path

from lissome.models.zoo import called
from lissome.report.answers import Fields, Parts, figure_of, text_of
from lissome.report.rows import LABELS, plain
from lissome.report.table import pairs, sheet
from lissome.report.units import duration, number


def supernet(fields: Fields) -> Parts:
    """The ends and the middle of a super-network, beside the model that was given."""
    points = fields["points"]
    qualities = list(dict.fromkeys(name for point in points for name in point["quality"]))
    costs = ("macs", "params", "disk")
    table = sheet(
        "sub-network", *(LABELS.get(name, name) for name in (*costs, *qualities)), title=plain(fields["model"])
    )
    for point in points:
        shown = [figure_of(name, point["figures"], points[0]["figures"] if point["step"] else {}) for name in costs]
        told = [number(point["quality"][name]) if name in point["quality"] else "–" for name in qualities]
        table.add_row(plain(point["change"]), *shown, *told)
    own = ", with batch norm statistics of its own" if fields["batch_norms"] else ""
    about = f"{fields['axes']} decisions, about 10^{fields['log10_subnets']:.0f} sub-networks"
    return [
        table,
        text_of(f"quality: on the examples to choose by{own}", "dim"),
        text_of(f"{about} ({duration(fields['seconds'])}); next: lissome search {fields['out']}", "bold"),
    ]


def extracted(fields: Fields) -> Parts:
    """A model that was cut out of a super-network."""
    figures, original = fields["figures"], fields["original"]
    lines = {LABELS.get(name, plain(name)): figure_of(name, figures, original) for name in figures}
    lines |= {f"{LABELS.get(name, plain(name))}, test split": number(value) for name, value in fields["test"].items()}
    point = "cut out of" if fields["number"] is None else f"point {fields['number']} of"
    title = f"{point} {called(Path(fields['artifact']))}"
    return [pairs(lines, title=plain(title)), text_of(f"{fields['path']} ({duration(fields['seconds'])})", "bold")]
