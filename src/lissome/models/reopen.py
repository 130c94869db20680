"""From a whole model to the sizes that a folder states."""

from __future__ import annotations

from collections.abc import Sequence

from lissome.models.anatomy import Layer
from lissome.models.binding import extract
from lissome.models.model import Model


def cut_to(whole: Model, layers: Sequence[Layer]) -> Model:
    """Cut a whole model down to such blocks as `lissome.models.anatomy.Anatomy.layers` lists.

    Args:
        whole: The model; left as it was.
        layers: What each block has.

    Raises:
        SubnetError: When the model has no such blocks.
    """
    presence = whole.anatomy.presence(layers)
    if "traced" in whole.anatomy.tags and not all(presence.values()):
        # channels that only a removed block held together are free without it, and get an axis of another name
        whole = extract(whole, presence)
    choices = whole.anatomy.choices(layers)
    if "traced" in whole.anatomy.tags:  # of a small network more may be elastic; the shapes of its weights are checked
        known = whole.anatomy.space(finest=True).by_name
        choices = {name: size for name, size in choices.items() if name in known}
    return extract(whole, choices)
