"""Folders of modules whose class is their user's: they hold weights and sizes; the user brings the module itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lissome.core.errors import ArtifactError, LissomeError
from lissome.models.model import Model

FOREIGN = "module"
"""Model type of a module whose class is its user's."""


def foreign_config(model: Model) -> dict[str, Any]:
    """Return what is known of such a module: the name of its class, which no folder may import, and its inputs."""
    return {
        "model_type": FOREIGN,
        "class": f"{type(model.module).__module__}.{type(model.module).__qualname__}",
        "inputs": {name: list(shape) for name, shape in model.anatomy.inputs.items()},
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
    }


def foreign_skeleton(config: Mapping[str, Any], into: nn.Module | None) -> nn.Module:
    """Cut a copy of a user's own module down to the sizes that a configuration states.

    Args:
        config: What ``config.json`` says.
        into: The whole module.

    Raises:
        ArtifactError: When there is no module, or it is not the one that was cut.
    """
    from lissome.models.reopen import cut_to
    from lissome.models.traced.inputs import tell

    base: Any = config["base"]
    if into is None:
        raise ArtifactError(
            f"the folder holds a {base.get('class')}, a class of its user, which no folder may build; give the whole "
            "module: lissome.load(folder, into=...)."
        )
    try:
        tell(into, {name: tuple(shape) for name, shape in base["inputs"].items()})
        return cut_to(Model(into.eval()), config["layers"]).module
    except (LissomeError, AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"the module is not the one that the folder was cut from: {error}") from error
