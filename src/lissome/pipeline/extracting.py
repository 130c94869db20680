"""Cuts the largest Subnet within a budget out of a model that was trained for many sizes; takes seconds and no data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lissome.core.budget import Budget
from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.events import EventStream
from lissome.core.manifest import read_manifest
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.planner import Planner
from lissome.engine.norms import batch_norms, take_statistics
from lissome.models.artifact import save_model
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.pipeline.loading import load
from lissome.pipeline.outcome import CLASSES, CLASSIFIER
from lissome.pipeline.places import check_extract_place
from lissome.pipeline.sizes import largest_known, read_sizes

_ELASTIC = "elastic"


def extract_within(
    artifact: Path | str, budget: str, out: Path | str, *, events: EventStream | None = None
) -> tuple[dict[str, float], dict[str, int], dict[str, float]]:
    """Cut a model of a wanted size out of an elastic one.

    Args:
        artifact: A folder whose model was trained for many sizes.
        budget: Bounds on counted terms, such as ``"block_params<=50%"``.
        out: Where the model goes.
        events: Where progress is reported.

    Returns:
        What the cut model costs by budget term, its choice on every axis, and what the whole costs.

    Raises:
        ArtifactError: When the folder is no artifact, or says no sizes.
        ConfigError: When a bound is on something that is not counted.
        BudgetUnmetError: When even the smallest size is too large, or with batch norms the smallest of which there are
            statistics; says what can be reached.
    """
    folder = Path(artifact)
    check_extract_place(folder, Path(out))
    manifest = read_manifest(folder)
    if manifest.space is None or _ELASTIC not in manifest.tags:
        raise ArtifactError(
            f"{folder} was not trained for many sizes; make a super-network with: lissome supernet MODEL --out S"
        )
    if not budget:
        raise ConfigError("say what the model may cost, with --budget such as block_params<=50%.")
    bounds, space, model = Budget.parse(budget), Space.from_json(manifest.space), load(folder, events=events)
    planner = Planner(space, SubnetCost(model))
    for name in bounds.names:
        if name not in planner.full:
            raise ConfigError(f"{name} is not counted; bound one of {', '.join(sorted(planner.full))}.")
    sizes = read_sizes(folder, manifest) if batch_norms(model.module) else {}
    subnet = largest_known(planner, bounds, sizes) if sizes else planner.largest(bounds)
    small: Model = extract(model, {**model.anatomy.space(finest=True).full, **subnet})
    if subnet in sizes:
        take_statistics(small.module, sizes[subnet])
    elif batch_norms(small.module) and subnet != space.full and events is not None:
        events.message(
            "its batch norms have the statistics of the whole, wrong for a slice: judge it before you use it"
        )
    cut = replace(
        manifest, name=f"{manifest.name}, {bounds}", subnet=subnet, layers=tuple(small.anatomy.layers()),
        tags=tuple(sorted({*manifest.tags, "pruned"} - {_ELASTIC})),
        lineage=tuple(replace(one, after=()) for one in manifest.lineage),
    )  # fmt: skip
    beside = {name: (folder / name).read_bytes() for name in (CLASSIFIER, CLASSES) if (folder / name).is_file()}
    save_model(small, Path(out), manifest=cut, extras=beside)
    return planner.figures(subnet), dict(subnet), dict(planner.full)
