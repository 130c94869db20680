"""Statistics of batch norms of the sizes that a federation's clients held, beside the model that it left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from lissome.core.budget import Budget, figure
from lissome.core.errors import ArtifactError, BudgetUnmetError
from lissome.core.files import parse_json
from lissome.core.manifest import Manifest
from lissome.core.typed import as_json, from_json
from lissome.engine.federate.norms import WHOLE, statistics_in
from lissome.engine.federate.planner import Planner
from lissome.engine.federate.program import Program
from lissome.models.space import Subnet

SIZES = "sizes.safetensors"
"""File of an artifact: running statistics of each size; its metadata say which Subnets these are."""

_LISTED = "sizes"

Sizes = Mapping[Subnet, Mapping[str, Tensor]]
"""Running statistics of batch norms by their names in the cut module, by Subnet."""


@dataclass(frozen=True)
class _Listed:
    """Which Subnet each name of a size stands for."""

    subnets: dict[str, dict[str, int]]


def sizes_file(program: Program) -> bytes | None:
    """Return the file with the statistics of all sizes but the whole, which has its own; None when there are none."""
    known = {size: subnet for size, subnet in getattr(program, "sizes", {}).items() if size != WHOLE}
    if not known:
        return None
    names = {size: str(index) for index, size in enumerate(known)}
    tensors = {
        f"{names[size]}/{name}": value.contiguous()
        for size in known
        for name, value in statistics_in(program.tensors, size).items()
    }
    listed = _Listed({names[size]: subnet.to_json() for size, subnet in known.items()})
    return safetensors_bytes(tensors, metadata={_LISTED: json.dumps(as_json(listed), sort_keys=True)})


def read_sizes(folder: Path, manifest: Manifest) -> Sizes:
    """Read the statistics of all sizes; empty where the artifact, which was verified before, has none.

    Raises:
        ArtifactError: When the file is damaged.
    """
    place = folder / SIZES
    if SIZES not in manifest.files:
        return {}
    found: dict[Subnet, dict[str, Tensor]] = {}
    try:
        with safe_open(place, "pt") as file:
            text = (file.metadata() or {}).get(_LISTED, "")
            subnets = from_json(_Listed, parse_json(text, str(place)), str(place)).subnets
            for name in file.keys():  # noqa: SIM118  it is no mapping
                size, _, inner = name.partition("/")
                found.setdefault(Subnet(subnets[size]), {})[inner] = file.get_tensor(name)
    except (SafetensorError, KeyError, OSError) as error:
        raise ArtifactError(f"{place} is damaged; run the federation again.") from error
    return found


def largest_known(planner: Planner, bounds: Budget, sizes: Sizes) -> Subnet:
    """Return the largest of the sizes that have statistics, the whole among them, within a budget.

    Raises:
        BudgetUnmetError: When none meets it; says what they need.
    """
    known = [planner.space.full, *sizes]
    fitting = [one for one in known if planner.fits(one, bounds)]
    if fitting:
        return max(fitting, key=lambda one: planner.figures(one)["params"])
    there = "; ".join(
        ", ".join(f"{term.name} {figure(term.name, planner.figures(one)[term.name])}" for term in bounds.terms)
        for one in known
    )
    raise BudgetUnmetError(
        f"no size meets {bounds} that clients measured statistics of batch norms of; there are: {there}. Give a bound "
        "that one of them meets, or a device of the wanted size in the recipe."
    )
