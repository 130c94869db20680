"""Low-rank adapters on a model's linear layers, by peft: y = W x + (alpha / rank) · B A x, with A and B trained.

They sit inside the module, so that a cut model with its per-layer shapes and removed branches needs nothing special;
merging adds the product to the weight and leaves the plain module. The saved folder is one that stock peft opens.
LoRA: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lissome.core.errors import ArtifactError, ConfigError, NumericsError, unknown_name
from lissome.core.files import atomic_folder
from lissome.models.model import Model
from lissome.models.parts import inputs, is_conv1d, is_linear, outputs

_NAME = "default"  # peft's own name for the only adapter
_PREFIX = "base_model.model."  # how stock peft calls the module inside its wrapper
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adaptable(model: Model, kinds: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the linear layers that adapters go on.

    Args:
        model: The model, cut or whole, without adapters.
        kinds: Last parts of the names to keep, e.g. ``("q_proj", "v_proj")``; None: all linears of all branches.

    Raises:
        ConfigError: When a kind names no layer of the model.
    """
    names = [name for branch in model.anatomy.branches for name in branch.linears if name not in branch.direct]
    known = {name.rpartition(".")[2] for name in names}
    for kind in kinds or ():
        if kind not in known:
            raise ConfigError(unknown_name("kind of linear layer", kind, known))
    return tuple(name for name in names if kinds is None or name.rpartition(".")[2] in kinds)


def add_lora(
    model: Model, *, rank: int = 16, alpha: int = 32, kinds: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Put adapters on a model's linear layers, in place, and freeze everything else; its function stays the same.

    Args:
        model: The model, without adapters.
        rank: Columns of B, rows of A; 16 is the choice of the papers that recover pruned models.
        alpha: The product is scaled by alpha / rank.
        kinds: As in `adaptable`.
        seed: Decides A (Kaiming uniform); B starts at zero.

    Raises:
        ConfigError: When the model has adapters already, or a kind is unknown.
    """
    if _layers(model.module):
        raise ConfigError(f"{model.name} has adapters already; merge them first.")
    names = list(adaptable(model, kinds))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=names,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(is_conv1d(model.module.get_submodule(name)) for name in names),
    )
    _inject(model, config, seed)


def merge_lora(model: Model) -> None:
    """Add the adapters' products to the weights and take the adapters out, in place; all parameters train again.

    Raises:
        NumericsError: When a merged weight would be NaN or infinite; the model keeps its adapters.
    """
    layers = _layers(model.module)
    for path, layer in layers.items():
        if not torch.isfinite(layer.get_delta_weight(_NAME)).all():
            raise NumericsError(f"the adapter of {path} holds NaN or infinity; train again with a lower lr.")
    for layer in layers.values():
        layer.merge()
    remove_lora(model)


def remove_lora(model: Model) -> None:
    """Take the adapters out without merging, in place; all parameters train again."""
    for path, layer in _layers(model.module).items():
        parent, _, name = path.rpartition(".")
        setattr(model.module.get_submodule(parent), name, layer.get_base_layer())
    vars(model.module).pop("peft_config", None)
    model.module.requires_grad_(True)


def save_adapters(model: Model, folder: Path) -> Path:
    """Write the adapters as a folder that `peft.PeftModel.from_pretrained(module, folder)` opens.

    Raises:
        ConfigError: When the model has no adapters.
        ArtifactError: When `folder` holds something else.
    """
    layers = _layers(model.module)
    if not layers:
        raise ConfigError(f"{model.name} has no adapters to save; add some first.")
    weights = get_peft_model_state_dict(model.module, adapter_name=_NAME, save_embedding_layers=False)
    first = next(iter(layers.values()))
    config = LoraConfig(
        r=first.r[_NAME],
        lora_alpha=first.lora_alpha[_NAME],
        target_modules=sorted(layers),
        task_type="CAUSAL_LM",
        fan_in_fan_out=is_conv1d(first.get_base_layer()),
        inference_mode=True,
    )
    with atomic_folder(folder, ours=(_CONFIG,)) as part:
        config.save_pretrained(str(part))
        save_file(
            {_PREFIX + name: value.detach().cpu().contiguous() for name, value in weights.items()}, part / _WEIGHTS
        )
    return folder


def load_adapters(model: Model, folder: Path) -> None:
    """Put saved adapters on a model, in place, and freeze everything else.

    Raises:
        ConfigError: When the model has adapters already.
        ArtifactError: When the folder is damaged, or its adapters do not fit the model.
    """
    if _layers(model.module):
        raise ConfigError(f"{model.name} has adapters already; merge them first.")
    for name in (_CONFIG, _WEIGHTS):  # peft would ask the hub for what it does not find
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is not a readable adapter folder ({name} is missing).")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{folder} is not a readable adapter folder ({_first_line(error)}).") from error
    if not isinstance(config, LoraConfig):
        raise ArtifactError(f"{folder} holds {config.peft_type} adapters; only LoRA is read.")
    named = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
    _check_fit(model.module, named, folder)
    config.inference_mode = False
    _inject(model, config, seed=0)
    set_peft_model_state_dict(model.module, named, adapter_name=_NAME)


def _inject(model: Model, config: LoraConfig, seed: int) -> None:
    model.module.requires_grad_(False)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.module, adapter_name=_NAME)
    for parameter in model.module.parameters():
        if parameter.requires_grad:  # small steps are lost in half precision
            parameter.data = parameter.data.float()


def _check_fit(module: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Refuse adapters of other layers or shapes before anything is changed."""
    layers = {name: part for name, part in module.named_modules() if is_linear(part)}
    for name, value in weights.items():
        path, _, kind = name.removesuffix(".weight").rpartition(".")
        side = {"lora_A": (inputs, 1), "lora_B": (outputs, 0)}.get(kind)
        if path not in layers or side is None or value.shape[side[1]] != side[0](layers[path]):
            raise ArtifactError(f"the adapters in {folder} do not fit the model ({name}); they are of another model.")


def _layers(module: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
