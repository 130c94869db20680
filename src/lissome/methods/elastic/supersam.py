"""SuperSAM: one pre-trained transformer becomes a super-network that is elastic in whole layers and in MLP widths.

Problem: a segmenter such as Segment Anything is far too large for most devices. Abebe, Jafari, Yu, Dutta, Strube,
Tallent, Guo, Munoz, Jannesari, "SuperSAM: Crafting a SAM Supernetwork via Structured Pruning and Unstructured Parameter
Prioritization" (arXiv 2501.08504): some layers E may be left out, each with probability 0.5; the hidden units of each
MLP are sorted by ``½ (Σ |W_in| ‖X‖ + Σ |W_out| ‖X‖)`` on calibration examples, so that a width w means the w first; the
largest, the smallest and a random sub-network are trained on the task. A program autotuner then looks for the best one
of a size: `lissome search --sampler ensemble` is its kind of search, an AUC bandit over several techniques.

Differs from the published code, and why:

- The three sub-networks share one optimizer step, with the mean of their gradients, on views of shared weights.
  ``update=in_turn`` trains one after another as the published code does, on batches of their own, with one optimizer:
  the published code makes a new one for every step, whose moments never accumulate.
- E is found by leaving each layer out alone, layer 0 never; the paper's own rule is not known. ``layers`` sets it.
- A removed layer keeps the others' kinds and tables, since blocks are skipped where they are.
- Units are sorted once, before training; the published code can sort again, on sums that it never clears.
- Any transformer whose layers hand on what they get: a segmenter of transformers (`SamModel`), whose prompt encoder is
  frozen and whose mask decoder is trained at its full size; a classifier of images; an encoder of text.
- ``part=vision_encoder`` trains a segmenter's encoder alone, on masks; the published cheap mode, which copies the
  embeddings of a larger encoder, needs that encoder.
- Only hidden units of MLPs and whole layers: attentions keep their width, as in the released setting.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lissome.core.config import option
from lissome.core.errors import ConfigError, UnsupportedModelError
from lissome.core.method import Context, Outcome
from lissome.engine.paths import RandomPath, Sandwich
from lissome.engine.spaces import Widths, elastic_space
from lissome.engine.supermethod import Making, SupernetConfig, SupernetMethod
from lissome.models.anatomy import Branch, Dim
from lissome.models.binding import masked
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

_ENCODER, _PROMPTS = "vision_encoder", "prompt_encoder"


class SuperSAM(SupernetMethod):
    """Elastic layers and MLP widths of a transformer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SupernetConfig):
        """Settings of SuperSAM."""

        lr: float = option(1e-5, "peak learning rate; cosine to 0 after a warm-up of 5 %", low=0.0, high=10.0)
        weight_decay: float = option(1e-4, "also shrinks what a step's path does not use", low=0.0)
        layers: tuple[int, ...] | None = option(
            None, "numbers of the layers that may be left out; none: those that are missed least", low=1
        )
        removable: float = option(
            0.4, "share of the layers that may be left out, where they are not given", low=0.0, high=1.0
        )
        widths: tuple[float, ...] = option(
            (1.0, 0.75, 0.5, 0.332, 0.25), "shares of an MLP's units", low=0.01, high=1.0
        )
        multiple: int = option(4, "units are rounded down to a multiple", low=1)
        min_width: int = option(32, "units that stay at least", low=1)
        order: Literal["wanda", "l1", "movement", "first_order", "random", "none"] = option(
            "wanda", "what sorts the units of MLPs before training"
        )
        update: Literal["together", "in_turn"] = option(
            "together", "the largest, the smallest and a random one: one step for all three, or one each in turn"
        )
        within: str | None = option(
            None, "dotted name of the part that is elastic; none: a segmenter's vision_encoder, else the whole model"
        )
        part: Literal["all", "blocks", "vision_encoder"] = option(
            "all",
            "what is trained; all: but for a segmenter's prompt encoder; blocks: the transformer's layers alone; "
            "vision_encoder: a segmenter's encoder alone",
        )

    config: Config

    def run(self, model: Model, context: Context) -> Outcome:
        """Find the layers that may go, sort the units of MLPs, train; continues after a kill.

        Raises:
            UnsupportedModelError: When the model has no MLPs that can be made smaller.
            ConfigError: When there is no layer of a number that was given, or no vision_encoder to train.
            DataError: When there are no examples to train on or to choose by.
            NumericsError: When training fails; names the step.
        """
        config, making = self.config, Making(model, context, self.config)
        segmenter = _segments(making.model)
        if config.part == _ENCODER and not segmenter:
            raise ConfigError(f"part=vision_encoder is for segmenters, which {model.name} is not; give all or blocks.")
        layers = _layers(making.model, self.config.within)
        parts = _whole(layers)
        if config.layers is not None and not set(config.layers) <= parts.keys():
            known = ", ".join(map(str, sorted(parts)))
            raise ConfigError(
                f"layers must be of {known} (layer 0 always stays), got {', '.join(map(str, config.layers))}."
            )
        mlps = [name for branches in layers for branch in branches for name in _units(branch)]
        making.tune()
        given = making.quality()
        losses = {} if config.layers is not None else self._missed(making, parts)
        most = round(config.removable * len(layers))
        gone = config.layers if config.layers is not None else sorted(losses, key=lambda layer: losses[layer])[:most]
        making.sort(config.order, mlps, sides="both")
        elastic = [name for branches in layers[1:] for branch in branches for name in _units(branch)]
        space = self._space(making.model, elastic, [parts[layer] for layer in sorted(gone)])
        sampler = Sandwich(space) if config.update == "together" else Turns(space)
        making.train("train", sampler, part=f"{config.part} but {_PROMPTS}" if segmenter else config.part)
        details = {"layers": sorted(gone), "loss_without": {str(layer): loss for layer, loss in losses.items()}}
        return making.outcome(space, given=given, details=details)

    @staticmethod
    def _missed(making: Making, parts: dict[int, tuple[str, ...]]) -> dict[int, float]:
        """Loss on the examples to choose by when each layer is left out alone."""
        losses = {}
        for layer, names in parts.items():
            with masked(making.model, dict.fromkeys(names, 0)):
                losses[layer] = making.objective.loss(making.model)
        return losses

    def _space(self, model: Model, mlps: Sequence[str], gone: Sequence[tuple[str, ...]]) -> Space:
        """Widths of all MLPs but the first layer's, and the layers that may be left out."""
        config = self.config
        rule = Widths(shares=config.widths, least=config.min_width, multiple=config.multiple)

        def sizes(name: str, dim: Dim) -> tuple[int, ...]:
            return rule(name, dim) if name in mlps else ()

        return elastic_space(model, sizes, kinds=("depth", "width"), ties=gone)


class Turns:
    """The largest, the smallest and a random one, each at a step of its own.

    Args:
        space: The axes to draw from.
    """

    def __init__(self, space: Space) -> None:
        self.space, self._random = space, RandomPath(space)

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Draw the one whose turn it is."""
        turn = step % 3
        return (self.space.full if turn == 0 else self.space.smallest if turn == 1 else self._random.one(rng),)


def _whole(layers: Sequence[tuple[Branch, ...]]) -> dict[int, tuple[str, ...]]:
    """Names of the branches of each layer that can go as a whole, by its number; the first one always stays."""
    return {
        number: tuple(branch.name for branch in branches)
        for number, branches in enumerate(layers)
        if number and all(branch.removable for branch in branches)
    }


def _layers(model: Model, within: str | None) -> list[tuple[Branch, ...]]:
    """Branches of each layer that has an MLP, in order; only the encoder's of a segmenter.

    Raises:
        UnsupportedModelError: When there is none.
    """
    usual = _ENCODER if _segments(model) else ""
    start = f"{within or usual}." if within or usual else ""
    blocks = (model.anatomy.of_block(index) for index in range(len(model.anatomy.blocks)))
    inside = (tuple(branch for branch in branches if branch.path.startswith(start)) for branches in blocks)
    found = [branches for branches in inside if any(_units(branch) for branch in branches)]
    if not found:
        raise UnsupportedModelError(
            f"SuperSAM makes MLPs of transformers smaller, but {within or model.name} has none that can be; use "
            "bootstrapnas."
        )
    return found


def _segments(model: Model) -> bool:
    """Whether a model is a segmenter of transformers."""
    return all(hasattr(model.module, part) for part in (_ENCODER, _PROMPTS, "mask_decoder"))


def _units(branch: Branch) -> list[str]:
    """Axes of the hidden units of a branch's MLP."""
    return [branch.axis(dim.name) for dim in branch.dims if dim.kind == "width" and not dim.shared]
