"""Folders of modules whose class is their user's: they hold weights and sizes; the user brings the module itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lissome.core.errors import ArtifactError, LissomeError
from lissome.models.model import Model

FOREIGN = "module"
"""Model type of a module whose class is its user's."""


def configuration_of(module: nn.Module) -> Any:
    """Return the configuration of transformers that a module has; None where what is called so is its user's own."""
    config: Any = getattr(module, "config", None)
    ours = callable(getattr(config, "to_dict", None)) and isinstance(getattr(config, "model_type", None), str)
    return config if ours else None


def is_own(model: Model) -> bool:
    """Whether a model's class is its user's, which no configuration builds; that of a known family never is."""
    from lissome.models.build import stock_class

    config = configuration_of(model.module)
    if config is None or "traced" not in model.anatomy.tags:
        return config is None
    try:
        stock_class({**config.to_dict(), "architectures": [type(model.module).__name__]})
    except ArtifactError:
        return True
    return False


def foreign_config(model: Model) -> dict[str, Any]:
    """Return what is known of such a module: the name of its class, which no folder may import, inputs and outputs."""
    return {
        "model_type": FOREIGN,
        "class": f"{type(model.module).__module__}.{type(model.module).__qualname__}",
        "inputs": {name: list(shape) for name, shape in model.anatomy.inputs.items()},
        **_outputs(model),
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
    }


def _outputs(model: Model) -> dict[str, int]:
    """How many classes a network of images has, which may be others than those of the module that its user brings."""
    from lissome.models.labels import outputs_of, puts_images_into_classes

    return {"classes": outputs_of(model)} if puts_images_into_classes(model) else {}


def foreign_skeleton(config: Mapping[str, Any], into: nn.Module | None) -> nn.Module:
    """Cut a copy of a user's own module down to the sizes that a configuration states, with as many classes.

    Args:
        config: What ``config.json`` says.
        into: The whole module.

    Raises:
        ArtifactError: When there is no module, or it is not the one that was cut.
    """
    from lissome.models.labels import with_image_labels
    from lissome.models.reopen import cut_to
    from lissome.models.traced.inputs import tell

    base: Any = config["base"]
    if into is None:
        raise ArtifactError(
            f"the folder holds a {base.get('class')}, a class of its user, which no folder may build; give the whole "
            "module: lissome.load(folder, into=...)."
        )
    given: Any = into.module if isinstance(into, Model) else into
    if not isinstance(given, nn.Module):
        called = f"{given.__name__}(), not its class" if isinstance(given, type) else "a torch module"
        raise ArtifactError(f"into= must be the whole module, such as {called}.")
    try:
        tell(given, {name: tuple(shape) for name, shape in base["inputs"].items()})
        whole = Model(given.eval())
        if "classes" in base:
            whole = with_image_labels(whole, range(base["classes"]))
        return cut_to(whole, config["layers"]).module
    except (LissomeError, AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"the module is not the one that the folder was cut from: {error}") from error
