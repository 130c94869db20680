"""Virtual tokens beside every input, trained instead of weights; those of text are saved as stock peft's prompt tuning.

Lester et al. 2021, arXiv 2104.08691. The tokens stand before the embeddings of the others, behind padding on the left,
and are cut off again behind the last block, so that callers see as many positions as they gave; a cache holds them
once. In a vision transformer they stand behind the patches (Jia et al. 2022, arXiv 2203.12119, its shallow form):
attention there knows no order, and what stands where the class is read does not move. Stock peft has none for images.
"""

# B examples, T tokens, N virtual tokens, D width of the embedding

from __future__ import annotations

import math
import types
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, ConfigError, UnsupportedModelError
from lissome.core.files import atomic_folder
from lissome.models.adapters.folder import CONFIG, WEIGHTS
from lissome.models.model import Model
from lissome.models.parts import CACHES

NAME = "prompt"
"""What the submodule is called. It is in the part of the model that embeds tokens and runs the blocks; in a vision
transformer in its embeddings."""

_KEY = "prompt_embeddings"


class Prompt(nn.Module):
    """N virtual tokens, float32[N, D]."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens.float())

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)


def prompt_of(model: Model) -> Prompt | None:
    """Return the virtual tokens of a model; None when it has none."""
    found = _host(model)._modules.get(NAME)
    return found if isinstance(found, Prompt) else None


def add_prompt(model: Model, tokens: int, *, seed: int = 0) -> None:
    """Put virtual tokens beside every input, in place, and freeze everything else.

    Args:
        model: A model that reads tokens, or a vision transformer.
        tokens: How many; they start as embeddings of tokens drawn with `seed`, those beside patches as evenly
            distributed numbers whose spread follows from the sizes of patches and tokens.
        seed: Of the draw.

    Raises:
        ConfigError: When the model has virtual tokens already, or none are asked for.
        UnsupportedModelError: When it reads something else than one row of tokens or patches.
    """
    if prompt_of(model) is not None:
        raise ConfigError(f"{model.name} has virtual tokens already; remove them first.")
    if tokens < 1:
        raise ConfigError(f"the number of virtual tokens must be at least 1, got {tokens}.")
    embedding, generator = _embedding(model), torch.Generator().manual_seed(seed)
    if embedding.dim() == 2:
        drawn = torch.randint(embedding.shape[0], (tokens,), generator=generator)
        _attach(model, embedding.detach()[drawn.to(embedding.device)].clone())
        return
    width = embedding.shape[0]  # of the convolution that reads patches, [D, C, h, w]
    most = math.sqrt(6 / (embedding[0].numel() + width))
    _attach(model, (2 * torch.rand(tokens, width, generator=generator) - 1).mul_(most).to(embedding.device))


def remove_prompt(model: Model) -> None:
    """Take the virtual tokens away, in place; all parameters train again."""
    if prompt_of(model) is not None:
        delattr(_host(model), NAME)
        for part in {_host(model), _base(model)}:
            del vars(part)["forward"]
    model.module.requires_grad_(True)
    model.reread()


def save_prompt(model: Model, folder: Path) -> Path:
    """Write the virtual tokens as a folder that ``peft.PeftModel.from_pretrained(module, folder)`` opens.

    Stock peft gives the positions of the virtual tokens too: N more, before the others. Those of a vision transformer
    are opened by `load_prompt` alone.

    Raises:
        ConfigError: When the model has none.
        ArtifactError: When `folder` holds something else.
    """
    from peft import PromptTuningConfig

    prompt = prompt_of(model)
    if prompt is None:
        raise ConfigError(f"{model.name} has no virtual tokens to save; add some first.")
    config = PromptTuningConfig(
        num_virtual_tokens=len(prompt),
        token_dim=prompt.tokens.shape[1],
        num_transformer_submodules=1,
        task_type="CAUSAL_LM" if model.anatomy.task == "causal-lm" else "FEATURE_EXTRACTION",
        inference_mode=True,
    )
    with atomic_folder(folder, ours=(CONFIG,)) as part:
        config.save_pretrained(str(part))
        save_file({_KEY: prompt.tokens.detach().cpu().contiguous()}, part / WEIGHTS)
    return folder


def load_prompt(model: Model, folder: Path) -> None:
    """Put saved virtual tokens on a model, in place, and freeze everything else.

    Raises:
        ConfigError: When the model has virtual tokens already.
        ArtifactError: When the folder is damaged, or does not fit the model.
    """
    if prompt_of(model) is not None:
        raise ConfigError(f"{model.name} has virtual tokens already; remove them first.")
    try:
        tokens = load_file(folder / WEIGHTS)[_KEY]
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{folder} is not a readable folder of virtual tokens ({type(error).__name__}).") from error
    if tokens.dim() != 2 or tokens.shape[1] != _width(model):
        raise ArtifactError(f"the virtual tokens in {folder} do not fit the model; they are of another model.")
    _attach(model, tokens)


def is_prompt_tensor(name: str) -> bool:
    """Whether a tensor of a model's state holds virtual tokens."""
    return name == f"{NAME}.tokens" or name.endswith(f".{NAME}.tokens")


def _attach(model: Model, tokens: Tensor) -> None:
    base, host = _base(model), _host(model)
    model.module.requires_grad_(False)
    setattr(host, NAME, Prompt(tokens).train(base.training))
    if host is base:
        vars(base)["forward"] = types.MethodType(_forward, base)
    else:
        vars(host)["forward"] = types.MethodType(_embedded, host)
        vars(base)["forward"] = types.MethodType(_without, base)
    model.reread()


def _host(model: Model) -> Any:
    """The part that holds the virtual tokens: the one that embeds patches, or runs everything."""
    base = _base(model)
    return base.embeddings if _reads_patches(model) else base


def _reads_patches(model: Model) -> bool:
    """Whether it is a vision transformer as transformers builds it, whose blocks see patches in one row."""
    return model.anatomy.task == "image" and hasattr(getattr(_base(model), "embeddings", None), "patch_embeddings")


def _base(model: Model) -> Any:
    """The part of the model that every forward passes through, whoever calls it; OPT's head skips the base model."""
    base: Any = getattr(model.module, "base_model", model.module)
    decoder = getattr(base, "decoder", None)
    return decoder if isinstance(decoder, nn.Module) and not hasattr(base, "encoder") else base


def _embedding(model: Model) -> Tensor:
    """Weight of what embeds: [V, D] of tokens, [D, C, h, w] of patches."""
    if _reads_patches(model):
        weight: Tensor = _host(model).patch_embeddings.projection.weight
        return weight
    text = model.anatomy.task in {"causal-lm", "encoder"}
    embedding = model.module.get_input_embeddings() if text else None  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding):
        raise UnsupportedModelError(f"{model.name} does not read one row of tokens; virtual tokens need that.")
    return embedding.weight


def _width(model: Model) -> int:
    """D."""
    return _embedding(model).shape[0 if _reads_patches(model) else 1]


def _embedded(self: Any, *given: Any, **named: Any) -> Tensor:
    """The patches as they are embedded, then the virtual tokens, which have no place."""
    states: Tensor = type(self).forward(self, *given, **named)
    return torch.cat([states, self.prompt.tokens.to(states.dtype).expand(len(states), -1, -1)], 1)


def _without(self: Any, *given: Any, **named: Any) -> Any:
    """The model's own forward; what became of the virtual tokens is cut off."""
    result = type(self).forward(self, *given, **named)
    result["last_hidden_state"] = result.last_hidden_state[:, : -len(self.embeddings.prompt)]
    return result


def _forward(self: Any, input_ids: Tensor | None = None, **given: Any) -> Any:
    """The model's own forward with the virtual tokens before the others, unless a cache holds them already."""
    embeds = given.pop("inputs_embeds", None)
    embeds = self.get_input_embeddings()(input_ids) if embeds is None else embeds
    rows, extra = len(embeds), len(self.prompt)
    seen = any(_holds(given.get(name)) for name in CACHES)
    mask, positions, kinds = (given.get(name) for name in ("attention_mask", "position_ids", "token_type_ids"))
    pads = None if mask is None else (mask.cumsum(1) == 0).sum(1)
    if mask is not None:
        given["attention_mask"] = _joined(mask.new_ones(rows, extra), mask, pads)
    if seen and positions is not None:
        given["position_ids"] = positions + extra
    if not seen:
        embeds = _joined(self.prompt.tokens.to(embeds.dtype).expand(rows, -1, -1), embeds, pads)
        if positions is not None:
            first = torch.arange(extra, device=positions.device).expand(rows, -1)
            given["position_ids"] = _joined(first, (positions + extra).expand(rows, -1), pads)
        if kinds is not None:
            given["token_type_ids"] = _joined(kinds.new_zeros(rows, extra), kinds, pads)
    result = type(self).forward(self, inputs_embeds=embeds, **given)
    if not seen:  # behind padding this drops an example's padding, or its virtual tokens, where padding stood
        result["last_hidden_state"] = result.last_hidden_state[:, extra:]
    return result


def _joined(first: Tensor, rest: Tensor, pads: Tensor | None) -> Tensor:
    """Put [B, N, …] before [B, T, …], but behind `pads` LongTensor[B] positions of padding: states would fade on it."""
    whole, extra = torch.cat([first, rest], 1), first.shape[1]
    if pads is None or not pads.any():
        return whole
    place, left = torch.arange(whole.shape[1], device=pads.device), pads[:, None]
    source = torch.where(place < left, place + extra, torch.where(place < left + extra, place - left, place))
    return whole[torch.arange(len(whole), device=pads.device)[:, None], source]


def _holds(cache: Any) -> bool:
    """Whether a cache holds tokens already; one of mixers alone has states, but says no length."""
    if cache is None:
        return False
    states = [layer.has_previous_state for layer in cache.layers if hasattr(layer, "has_previous_state")]
    return any(any(held.values()) for held in states) if states else bool(cache.get_seq_length())
