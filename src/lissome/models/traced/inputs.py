"""What a network reads: as it was told, as its configuration says, or as its first layer suggests."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError, unknown_name
from lissome.models.traced.recorder import Recording, record
from lissome.models.traced.stand_in import drawn_inputs

ATTRIBUTE = "example_shapes"
"""Attribute of a module that says the shape of each input without the batch, by argument name."""

_SIDES = (224, 32, 28, 64, 96, 128, 160, 192, 256, 299, 384, 8, 16)  # pixels that images have, the usual ones first


def recorded(module: nn.Module) -> tuple[dict[str, tuple[int, ...]], Recording]:
    """Record a network, and say the shape of each input without the batch, by argument name.

    Args:
        module: The network, with random weights.

    Raises:
        UnsupportedModelError: When no size is known and none of the usual ones runs; see `record`.
    """
    told = getattr(module, ATTRIBUTE, None) or _prompted(module)
    if told is not None:
        shapes = {name: tuple(shape) for name, shape in told.items()}
        return shapes, record(module, drawn_inputs(shapes))
    name, first = argument(module), None
    for shape in _candidates(module):
        try:
            return {name: shape}, record(module, drawn_inputs({name: shape}))
        except UnsupportedModelError as error:
            first = first or error
    raise first or UnsupportedModelError(f"{type(module).__name__} has no layer that says what it reads; say example=")


def tell(module: nn.Module, example: Any) -> None:
    """Write down what a network reads.

    Args:
        module: The network.
        example: Shape of one input without the batch, or a tensor with one; of several inputs by argument name.

    Raises:
        UnsupportedModelError: When a shape is none, an input is of whole numbers, is not known, or lacks.
    """
    given = example if isinstance(example, Mapping) else {argument(module): example}
    _require_known(module, given)
    shapes = {}
    for name, each in given.items():
        if isinstance(each, Tensor) and not each.is_floating_point():
            raise UnsupportedModelError(
                f"example: {name} holds whole numbers ({each.dtype}), but what is read are images and rows of numbers; "
                "wrap the network in a module that takes floats and rounds them, or give a text model of transformers."
            )
        shape = tuple(each.shape[1:]) if hasattr(each, "shape") else tuple(each) if isinstance(each, Sequence) else ()
        if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
            raise UnsupportedModelError(
                f"example={each!r} is no shape; give for instance (3, 224, 224), or a tensor with a batch."
            )
        shapes[name] = shape
    setattr(module, ATTRIBUTE, shapes)


def _require_known(module: nn.Module, given: Mapping[str, Any]) -> None:
    """Refuse inputs that a forward does not take, and too few of them."""
    parameters = _arguments(module)
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    known = [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]
    for name in given:
        if name not in known:
            raise UnsupportedModelError(f"example: {unknown_name('input', name, known)}")
    lacking = [name for name in known if _is_needed(parameters, name) and name not in given]
    if lacking:
        every = ", ".join(f"{name!r}: (…)" for name in (*given, *lacking))
        raise UnsupportedModelError(
            f"{type(module).__name__} also reads {', '.join(lacking)}; give the shape of each input without the batch: "
            f"example={{{every}}}"
        )


def _is_needed(parameters: Sequence[inspect.Parameter], name: str) -> bool:
    return any(each.name == name and each.default is each.empty for each in parameters)


def _arguments(module: nn.Module) -> list[inspect.Parameter]:
    """What a module's forward takes."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{type(module).__name__} was compiled by torch.jit, and says nothing of what it reads; give the module "
            "that it was made of."
        )
    return list(inspect.signature(module.forward).parameters.values())


def argument(module: nn.Module) -> str:
    """Return the name of the first argument of a module's forward.

    Raises:
        UnsupportedModelError: When it has none, or the module was compiled by torch.jit.
    """
    parameters = _arguments(module)
    named = getattr(module, "main_input_name", None)
    if isinstance(named, str) and any(each.name == named or each.kind is each.VAR_KEYWORD for each in parameters):
        return named  # classes of transformers say input_ids where they say nothing
    if not parameters or parameters[0].kind is parameters[0].VAR_POSITIONAL:
        raise UnsupportedModelError(f"the forward of {type(module).__name__} names no input; say example= by name")
    return parameters[0].name


def _prompted(module: nn.Module) -> dict[str, tuple[int, ...]] | None:
    """What a segmenter of transformers reads: an image, and one point in it."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "model_type", None) != "sam":
        return None
    vision = config.vision_config
    return {"pixel_values": (vision.num_channels, vision.image_size, vision.image_size), "input_points": (1, 1, 2)}


def _candidates(module: nn.Module) -> Iterator[tuple[int, ...]]:
    config: Any = getattr(module, "config", None)
    stated = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if isinstance(stated, Mapping) and stated.get("input_size"):
        yield tuple(stated["input_size"])
    channels, size = (_stated(config, name) for name in ("num_channels", "image_size"))
    layer = next((part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Conv1d | nn.Linear)), None)
    if len(channels) == 1 and size:
        yield *channels, size[0], size[-1]
    if isinstance(layer, nn.Conv2d):
        for side in _SIDES:
            yield channels[0] if len(channels) == 1 else layer.in_channels, side, side
    elif isinstance(layer, nn.Conv1d):
        for side in _SIDES:
            yield layer.in_channels, side
    elif isinstance(layer, nn.Linear):
        yield (layer.in_features,)


def _stated(config: Any, name: str) -> tuple[int, ...]:
    """One or two numbers that a configuration states; none where it is a user's own that means something else by it."""
    value = getattr(config, name, None)
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    return found if len(found) < 3 and all(type(each) is int and each > 0 for each in found) else ()
