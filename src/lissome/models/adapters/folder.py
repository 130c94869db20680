"""Adapters as folders that stock peft opens: ``adapter_config.json`` and ``adapter_model.safetensors``.

Different ranks are written as ``rank_pattern``, with an ``alpha_pattern`` that keeps each layer's scale: a rank r cut
out of r_max is written with alpha · r / r_max. LoRA-XS cores are multiplied into B. What peft has no words for (groups,
ranks to choose from, cores, masks) goes into ``lissome.json``, with its tensors in ``lissome.safetensors``; masked and
quantised adapters, which peft would apply to the zeros too, have these alone.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.files import atomic_folder, read_json
from lissome.core.typed import as_json, from_json
from lissome.models.adapters.elastic import labels
from lissome.models.adapters.layers import Core, LowRank, Masked, Quantised, adapters, attach
from lissome.models.model import Model
from lissome.models.parts import inputs, is_conv1d, is_linear, outputs

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OWN, OWN_WEIGHTS = "lissome.json", "lissome.safetensors"
SUPER = "super-adapter"
"""Folder of an artifact with the adapters from which its own were cut."""
PREFIX = "base_model.model."  # how stock peft calls the module inside its wrapper

_SCHEMA = 1
_FORMS: Mapping[str, type[LowRank]] = {kind.form: kind for kind in (LowRank, Masked, Quantised, Core)}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways of starting that also change the weights


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One adapter, as ``lissome.json`` lists it."""

    form: str
    group: str
    ranks: tuple[int, ...]
    scale: float
    options: Mapping[str, int] = field(default_factory=dict)


def save_adapters(model: Model, folder: Path) -> Path:
    """Write the adapters as a folder that ``peft.PeftModel.from_pretrained(module, folder)`` opens, masked ones apart.

    Raises:
        ConfigError: When the model has no adapters.
        ArtifactError: When `folder` holds something else.
    """
    on = adapters(model.module)
    if not on:
        raise ConfigError(f"{model.name} has no adapters to save; add some first.")
    with atomic_folder(folder, ours=(CONFIG, OWN)) as part:
        if not any(isinstance(adapter, Masked) for adapter in on.values()):
            _stock_config(model, on).save_pretrained(str(part))
            pairs = {name: adapter.pair() for name, adapter in on.items()}
            tensors = {f"{name}.lora_{side}.weight": pair[side == "B"] for name, pair in pairs.items() for side in "AB"}
            save_file({PREFIX + name: _plain(value) for name, value in tensors.items()}, part / WEIGHTS)
        known = labels(model)
        if not all(_is_stock(adapter, known[name]) for name, adapter in on.items()):
            entries = {name: as_json(_entry(adapter)) for name, adapter in on.items()}
            (part / OWN).write_text(
                json.dumps({"schema": _SCHEMA, "adapters": entries}, indent=2, sort_keys=True) + "\n"
            )
            own = {name: adapter for name, adapter in on.items() if type(adapter) is not LowRank}
            state = {f"{name}.{key}": value for name, one in own.items() for key, value in _state(one).items()}
            if state:
                save_file({name: _plain(value) for name, value in state.items()}, part / OWN_WEIGHTS)
    return folder


def adapter_files(model: Model, folder: Path, name: str = SUPER) -> dict[str, bytes]:
    """Return the files that `save_adapters` writes, for an artifact's folder `name`; `folder` is made and removed."""
    save_adapters(model, folder)
    found = {f"{name}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    return found


def load_adapters(model: Model, folder: Path) -> None:
    """Put saved adapters on a model, in place, and freeze everything else.

    Raises:
        ConfigError: When the model has adapters already, or masked ones meet a layer that is not sparse.
        ArtifactError: When the folder is damaged, or its adapters do not fit the model.
    """
    if adapters(model.module):
        raise ConfigError(f"{model.name} has adapters already; merge them first.")
    described, own = (folder / OWN).is_file(), (folder / OWN_WEIGHTS).is_file()
    for name in (OWN,) if own else (CONFIG, WEIGHTS):  # peft would ask the hub for what it does not find
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is not a readable adapter folder ({name} is missing).")
    try:
        tensors = load_file(folder / (OWN_WEIGHTS if own else WEIGHTS))
        entries = _own_entries(folder) if described else _stock_entries(folder, tensors, labels(model))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{folder} is not a readable adapter folder ({_first_line(error)}).") from error
    states = _by_layer(tensors if own else _renamed(tensors, folder))
    _check_fit(model.module, entries, states, folder)
    made = {name: _built(model.module.get_submodule(name), entries[name], states[name]) for name in entries}
    model.module.requires_grad_(False)
    for name, adapter in made.items():
        attach(model.module.get_submodule(name), adapter)
        for parameter in adapter.trained():
            parameter.requires_grad_(True)
    model.reread()


def _stock_config(model: Model, on: Mapping[str, LowRank]) -> LoraConfig:
    from peft import LoraConfig  # slow to import, and of no use to models without adapters

    first = next(iter(on.values()))
    rank, alpha = first.rank, first.scale * first.rank
    config = LoraConfig(
        r=rank,
        lora_alpha=_whole(alpha),  # type: ignore[arg-type]  # peft divides whatever number it is
        target_modules=list(on),
        rank_pattern={name: one.rank for name, one in on.items() if one.rank != rank},
        alpha_pattern={name: _whole(one.scale * one.rank) for name, one in on.items() if one.scale * one.rank != alpha},
        task_type="CAUSAL_LM" if model.anatomy.task == "causal-lm" else None,
        fan_in_fan_out=any(is_conv1d(model.module.get_submodule(name)) for name in on),
        inference_mode=True,
    )
    config.target_modules = sorted(on)  # peft makes a set of it, which every process would write in another order
    return config


def _whole(number: float) -> float:
    """A whole number as one: peft's alpha usually is."""
    return int(number) if number == int(number) else number


def _is_stock(adapter: LowRank, label: str) -> bool:
    """Whether peft's own words say all there is to say."""
    return type(adapter) is LowRank and len(adapter.ranks) == 1 and adapter.group == label


def _entry(adapter: LowRank) -> _Entry:
    options = {"bits": adapter.bits} if isinstance(adapter, Quantised) else {}
    return _Entry(form=adapter.form, group=adapter.group, ranks=adapter.ranks, scale=adapter.scale, options=options)


def _state(adapter: LowRank) -> dict[str, Tensor]:
    grid = ("grid_scale", "grid_zero") if isinstance(adapter, Quantised) else ()
    return dict(adapter.named_parameters()) | {name: getattr(adapter, name) for name in grid}


def _own_entries(folder: Path) -> dict[str, _Entry]:
    fields = read_json(folder / OWN)
    if not isinstance(fields, dict) or not isinstance(fields.get("adapters"), dict):
        raise ValueError(f"{OWN} lists no adapters")
    if type(fields.get("schema")) is not int or fields["schema"] > _SCHEMA:
        raise ArtifactError(f"{folder / OWN} is from a newer version; upgrade lissome.")
    entries = {name: from_json(_Entry, one, f"{folder / OWN}:{name}") for name, one in fields["adapters"].items()}
    for name, entry in entries.items():
        if entry.form not in _FORMS or not entry.ranks or not math.isfinite(entry.scale):
            raise ArtifactError(f"{folder / OWN} describes no adapter of {ascii(name)[:80]}; it is damaged.")
    return entries


def _stock_entries(folder: Path, tensors: Mapping[str, Tensor], known: Mapping[str, str]) -> dict[str, _Entry]:
    from peft import LoraConfig, PeftConfig
    from peft.utils.other import get_pattern_key

    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ArtifactError(f"{folder} holds {config.peft_type} adapters; only LoRA is read.")
    start = str(config.init_lora_weights).lower()
    if config.use_dora or start.startswith(_CHANGES_BASE):
        kind = "DoRA" if config.use_dora else start
        raise ArtifactError(f"{folder} holds {kind} adapters, which also change the weights; only plain LoRA is read.")
    if config.alora_invocation_tokens:
        raise ArtifactError(
            f"{folder} holds adapters that work only behind certain tokens (aLoRA); only plain LoRA is read."
        )
    ranks = {
        name.removesuffix(".lora_A.weight").removeprefix(PREFIX): int(value.shape[0])
        for name, value in tensors.items()
        if name.endswith(".lora_A.weight") and value.dim() == 2
    }
    entries, patterns = {}, config.alpha_pattern or {}
    for name, rank in ranks.items():
        alpha = patterns.get(get_pattern_key(list(patterns), name), config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        entries[name] = _Entry(form=LowRank.form, group=known.get(name, name), ranks=(rank,), scale=scale)
    return entries


def _renamed(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Peft's names as ours; anything but pairs is refused."""
    found = {}
    for name, value in tensors.items():
        path, _, kind = name.removesuffix(".weight").removeprefix(PREFIX).rpartition(".")
        if kind not in ("lora_A", "lora_B"):
            raise ArtifactError(f"the adapters in {folder} hold {name}; only plain low-rank pairs are read.")
        found[f"{path}.{kind[-1]}"] = value
    return found


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        path, _, kind = name.rpartition(".")
        found.setdefault(path, {})[kind] = value
    return found


def _check_fit(
    module: nn.Module, entries: Mapping[str, _Entry], states: Mapping[str, Mapping[str, Tensor]], folder: Path
) -> None:
    """Refuse adapters of other layers or shapes, or of a weight that two layers share, before anything is changed."""
    uses = Counter(id(value) for _, value in module.named_parameters(remove_duplicate=False))
    layers = {name: part for name, part in module.named_modules() if is_linear(part)}
    for name in sorted({*entries, *states}):
        state = states.get(name, {})
        fits = name in layers and name in entries and {"A", "B"} <= state.keys()
        if fits:
            rank = len(state["A"])
            shapes = tuple(state["A"].shape), tuple(state["B"].shape)
            fits = shapes == ((rank, inputs(layers[name])), (outputs(layers[name]), rank))
            fits = fits and rank <= entries[name].ranks[0]
        if not fits:
            raise ArtifactError(f"the adapters in {folder} do not fit the model ({name}); they are of another model.")
        if uses[id(layers[name].weight)] > 1:  # merged, they would change what tokens are read as
            raise ArtifactError(
                f"the adapters in {folder} are on {name}, whose weight another layer has too; untie it."
            )


def _built(layer: nn.Module, entry: _Entry, state: Mapping[str, Tensor]) -> LowRank:
    adapter = _FORMS[entry.form](layer, (len(state["A"]),), alpha=1.0, **entry.options)
    adapter.scale, adapter.group, adapter.ranks = entry.scale, entry.group, entry.ranks
    for name, value in state.items():
        target = getattr(adapter, name, None)
        if not isinstance(target, Tensor) or (target.shape != value.shape and not name.startswith("grid")):
            raise ArtifactError(f"the adapter of {entry.group} has an unknown tensor {name}; it is damaged.")
        target.data = value.to(target.device, target.dtype)
    return adapter.requires_grad_(False)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous().clone()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
