"""The own models of a federation's simulated clients, as artifacts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from lissome.core.errors import ConfigError, UnknownNameError, unknown_name
from lissome.core.events import EventStream
from lissome.core.files import read_json
from lissome.engine.federate.bound import TASK, Bound, cut_model
from lissome.engine.federate.mutual import own_parameters
from lissome.engine.federate.norms import OWN, take_moments
from lissome.engine.federate.store import ClientStore, Kept
from lissome.engine.federate.training import MINE, mixed
from lissome.engine.norms import take_statistics
from lissome.models.artifact import save_model
from lissome.models.labels import image_labels_of, labels_of, puts_images_into_classes
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.pipeline.federation import FederationJob, FederationRecipe
from lissome.pipeline.loading import RECIPE, load
from lissome.pipeline.outcome import CLASSES, CLASSIFIER, read_federated
from lissome.pipeline.places import check_extract_place
from lissome.pipeline.sizes import read_sizes


def client_model(artifact: Path | str, name: str, out: Path | str, *, events: EventStream | None = None) -> None:
    """Write the model of one simulated client, with what it kept for itself.

    Args:
        artifact: A folder that a federation left.
        name: Of the client.
        out: Where the model goes.
        events: Where progress is reported.

    Raises:
        ArtifactError: When the folder is of no federation, or of one that is not finished.
        UnknownNameError: When there is no such client.
        ConfigError: When clients kept nothing.
    """
    folder = Path(artifact)
    check_extract_place(folder, Path(out))
    manifest, clients = read_federated(folder), folder / "clients"
    names = sorted(path.name for path in clients.iterdir()) if clients.is_dir() else []
    if not any(clients.rglob("*.safetensors")):  # there is a folder of each client all the same
        raise ConfigError(f"the clients of {folder} kept nothing for themselves; its model is everybody's.")
    if name not in names:
        raise UnknownNameError(unknown_name("client", name, names))
    kept, whole = ClientStore(clients / name).before(10**9), load(folder, events=events)
    own = own_parameters(kept.tensors)
    if own:
        job = FederationJob(FederationRecipe.read(folder / RECIPE), events, classes=_classes(folder, whole))
        small = cut_model(job.model, kept.facts.get("subnet"))
        bound = Bound.of(job.model, small, small.module, kept.facts.get("subnet"))
        task = {key: value for key, value in own.items() if key.startswith(TASK)}
        bound.load({key: value for key, value in own.items() if key not in task})
    else:
        bound, task = _personal(folder, whole, kept)
        small, size = bound.model, Subnet(kept.facts.get("subnet") or {})
        sizes = read_sizes(folder, manifest)
        if size in sizes:
            take_statistics(small.module, sizes[size])
    take_moments(small, kept.tensors, OWN)
    extras = {CLASSES: (folder / CLASSES).read_bytes()} if (folder / CLASSES).is_file() else {}
    extras |= {CLASSIFIER: safetensors_bytes(task)} if task else {}
    made = replace(
        manifest, name=f"{manifest.name}, {name}", space=None, layers=tuple(small.anatomy.layers()),
        lineage=tuple(replace(one, after=()) for one in manifest.lineage),
    )  # fmt: skip
    save_model(small, Path(out), manifest=made, extras=extras)


def _personal(folder: Path, whole: Model, kept: Kept) -> tuple[Bound, dict[str, Tensor]]:
    """Return a client's slice of the global model with what it kept put in, and what its task has beside the model."""
    recipe, subnet = FederationRecipe.read(folder / RECIPE), kept.facts.get("subnet")
    small = cut_model(whole, subnet) if subnet is not None else whole
    bound = Bound.of(whole, small, small.module, subnet)
    share: float = getattr(recipe.step.config, "common", 1.0)
    own = {key: value for key, value in kept.tensors.items() if "|" not in key}
    mine = {key.removeprefix(MINE): value for key, value in kept.tensors.items() if key.startswith(MINE)}
    task = load_file(folder / CLASSIFIER) if (folder / CLASSIFIER).is_file() else {}
    task = {name: torch.lerp(mine[name], value, share) if name in mine else value for name, value in task.items()}
    bound.load(mixed(bound, kept.tensors, share))
    bound.load({key: value for key, value in own.items() if not key.startswith(TASK)})
    return bound, task | {key: value for key, value in own.items() if key.startswith(TASK)}


def _classes(folder: Path, model: Model) -> tuple[str, ...]:
    """Names of the classes, without the data that they were learned from."""
    if (folder / CLASSES).is_file():
        return tuple(read_json(folder / CLASSES))
    return image_labels_of(model) if puts_images_into_classes(model) else labels_of(model)
