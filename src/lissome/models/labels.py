"""Heads for tasks: named classes of texts or images, whose names are in the configuration, and answers in a text.

An encoder of text becomes transformers' own class with a head, which opens with
``AutoModelForSequenceClassification``: a pooler over the first token, and a linear layer; or, for answers, with
``AutoModelForQuestionAnswering``: a linear layer that scores every token as the first and the last of the answer. A
network of images gets another last layer.
"""

# D residual width, K classes

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import ConfigError, LissomeError, UnsupportedModelError, first_line
from lissome.models.build import is_memory
from lissome.models.example import example
from lissome.models.foreign import configuration_of
from lissome.models.model import Model
from lissome.models.resave import keep_sizes

_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers writes where nobody gave names


def labels_of(model: Model) -> tuple[str, ...]:
    """Return the names of the classes that a model puts texts into, in the order of its outputs; none without names."""
    if type(model.module).__name__ not in _classes().values():
        return ()
    named: dict[int, str] = model.module.config.id2label  # type: ignore[union-attr,assignment]
    names = tuple(str(name) for _, name in sorted(named.items()))
    return () if all(map(_UNNAMED.fullmatch, names)) else names


def with_labels(model: Model, labels: Sequence[str], *, seed: int = 0) -> Model:
    """Return an encoder with a new head for named classes; its blocks and embeddings are shared, not copied.

    The encoder's own pooler stays where it has one. Another head that it had (of another task) is left out.

    Args:
        model: An encoder of text.
        labels: Names of the classes.
        seed: Of the head's first weights: normal, as wide as the model's configuration says; biases are zero.

    Raises:
        UnsupportedModelError: When the model is no encoder of text.
        ConfigError: When transformers has no such class for it.
    """
    model.anatomy.require("encoder", "putting texts into classes")
    config: Any = copy.deepcopy(model.module.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.problem_type = "single_label_classification"
    return _with_head(model, _classes(), config, "puts texts into classes", seed)


def answers_by_spans(model: Model) -> bool:
    """Whether a model has a head that finds answers in a text."""
    return type(model.module).__name__ in _answerers().values()


def with_answers(model: Model, *, seed: int = 0) -> Model:
    """Return an encoder with a new head that finds answers in a text; its blocks are shared, not copied.

    Args:
        model: An encoder of text.
        seed: Of the head's first weights, as in `with_labels`.

    Raises:
        UnsupportedModelError: When the model is no encoder of text.
        ConfigError: When transformers has no such class for it.
    """
    model.anatomy.require("encoder", "finding answers in a text")
    return _with_head(model, _answerers(), copy.deepcopy(model.module.config), "finds answers in a text", seed)


def _with_head(model: Model, classes: Mapping[str, str], config: Any, what: str, seed: int) -> Model:
    from accelerate import init_empty_weights

    kind, old = model.anatomy.architecture, model.module
    if kind not in classes:
        raise ConfigError(f"transformers has no class that {what} for {kind}; use another encoder.")
    import transformers

    config.architectures = [classes[kind]]
    with init_empty_weights(include_buffers=False):
        module: Any = getattr(transformers, classes[kind])._from_config(config)
    base = getattr(module, module.base_model_prefix)
    for name, part in old.base_model.named_children():  # type: ignore[union-attr]
        if getattr(base, name, None) is not None:  # where there is no pooler, none is put
            setattr(base, name, part)
    like = next(old.parameters())
    for name, empty in [(name, value) for name, value in module.named_parameters() if value.is_meta]:
        owner, _, last = name.rpartition(".")
        fresh = torch.zeros(empty.shape, dtype=like.dtype, device=like.device)
        if fresh.dim() > 1:
            drawn = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(seed))
            fresh.copy_(drawn * config.initializer_range)
        setattr(module.get_submodule(owner), last, nn.Parameter(fresh))
    keep_sizes(module)
    return model.derived(module.eval())


@torch.no_grad()
def outputs_of(model: Model) -> int:
    """Return how many classes a network puts images into.

    Raises:
        UnsupportedModelError: When it does not read images, or has no head for classes.
    """
    model.anatomy.require("image", "putting images into classes")
    given = example(model, batch=2)
    if len(given) > 1:
        raise UnsupportedModelError(f"{model.name} reads {', '.join(given)}; give a network that reads one image.")
    modes = {part: part.training for part in model.module.modules()}
    model.module.eval()  # a look must not move statistics of batch norms
    try:
        scores = class_scores(model.module(**{name: pixels.float() for name, pixels in given.items()}))
    except LissomeError:
        raise
    except Exception as error:  # whatever a network's own code raises
        if is_memory(error):
            raise
        raise UnsupportedModelError(
            f"{model.name} fails on two images of float32 numbers ({first_line(error)}); give a network whose forward "
            "reads any number of them, and whose weights are float32 too."
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if scores.ndim != 2:
        shape = " × ".join(map(str, scores.shape[1:]))
        raise UnsupportedModelError(f"{model.name} gives {shape} numbers for an image, not one for each class.")
    return int(scores.shape[-1])


def puts_images_into_classes(model: Model) -> bool:
    """Whether a model is a network of images that has a head for classes; its hidden states alone are none."""
    if model.anatomy.task != "image":
        return False
    try:
        return outputs_of(model) > 0
    except UnsupportedModelError:
        return False


def has_classes(model: Model) -> bool:
    """Whether a model has a head for classes: of texts with names, or of images."""
    return bool(labels_of(model)) or puts_images_into_classes(model)


def class_scores(result: Any) -> Tensor:
    """Return the scores of classes from what a network gives, whatever it wraps them in.

    Args:
        result: A tensor, something with ``logits``, or a tuple, as of a network with further heads in training, whose
            first entry counts.

    Raises:
        UnsupportedModelError: When there are none in it.
    """
    if isinstance(result, Mapping):
        found = result.get("logits")
    elif isinstance(result, Tensor) or hasattr(result, "logits"):
        found = getattr(result, "logits", result)
    else:
        found = result[0] if isinstance(result, tuple | list) and result else None
    if not isinstance(found, Tensor):
        kind = type(result).__name__
        raise UnsupportedModelError(f"a {kind} without logits gives no classes; give a network with a head for them.")
    return found


def image_labels_of(model: Model) -> tuple[str, ...]:
    """Return the names of the classes that a network puts images into; none without names."""
    named: Any = getattr(configuration_of(model.module), "id2label", None) or {}
    names = tuple(str(name) for _, name in sorted(named.items()))
    return () if len(names) != outputs_of(model) or all(map(_UNNAMED.fullmatch, names)) else names


@torch.no_grad()
def with_image_labels(model: Model, labels: Sequence[Any], *, seed: int = 0) -> Model:
    """Return a network of images that puts them into named classes: itself where it has as many, else with a new head.

    The new head is the last linear layer or convolution that makes the network's outputs, drawn anew; all else is
    copied.

    Args:
        model: A network of images.
        labels: Names of the classes.
        seed: Of the head's first weights: normal with deviation 0.01; biases are zero.

    Raises:
        UnsupportedModelError: When the network does not read images, or its outputs come from no such layer.
    """
    count = outputs_of(model)
    if count == len(labels):
        return model
    module: Any = copy.deepcopy(model.module)
    name = image_head(model)
    owner, _, last = name.rpartition(".")
    fresh = _of_outputs(module.get_submodule(name), len(labels))
    drawn = torch.randn(fresh.weight.shape, generator=torch.Generator().manual_seed(seed))
    fresh.weight.copy_(0.01 * drawn)
    if fresh.bias is not None:
        fresh.bias.zero_()
    setattr(module.get_submodule(owner), last, fresh)
    config = configuration_of(module)
    if config is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
    return model.derived(module.eval())


def image_head(model: Model) -> str:
    """Return the name of the last linear layer or convolution that makes as many numbers as a network of images gives.

    Raises:
        UnsupportedModelError: When the network does not read images, or no such layer makes its outputs.
    """
    count, layers = outputs_of(model), list[str]()
    for name, part in model.module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d) and part.weight.shape[0] == count:
            layers.append(name)
    if not layers:
        raise UnsupportedModelError(
            f"no linear layer or convolution makes the {count} numbers that {model.name} gives for an image; give a "
            "network with a head of that size."
        )
    return layers[-1]


def _of_outputs(old: Any, count: int) -> nn.Linear | nn.Conv2d:
    """A new layer like another one, with another number of outputs."""
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, count, bias=bias).to(old.weight)
    fresh = nn.Conv2d(
        old.in_channels, count, old.kernel_size, old.stride, old.padding, old.dilation, bias=bias,
        padding_mode=old.padding_mode,
    )  # fmt: skip
    return fresh.to(old.weight)


def head_parameters(model: Model) -> Iterator[nn.Parameter]:
    """Yield the parameters of a head with classes: those outside of embeddings and blocks, the pooler's among them.

    Of a network of images: those of its `image_head`.
    """
    if puts_images_into_classes(model):
        yield from model.module.get_submodule(image_head(model)).parameters()
        return
    prefix = f"{model.module.base_model_prefix}."
    for name, parameter in model.module.named_parameters():
        if not name.startswith(prefix) or name.startswith(f"{prefix}pooler."):
            yield parameter


def _classes() -> dict[str, str]:
    """Class of transformers that puts texts into classes, by model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    return dict(NAMES)


def _answerers() -> dict[str, str]:
    """Class of transformers that finds answers in a text, by model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES as NAMES

    return dict(NAMES)
