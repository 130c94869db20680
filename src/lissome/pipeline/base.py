"""What an artifact was made from: how its manifest names it, and how it is found again."""

from __future__ import annotations

from pathlib import Path

from lissome.core.errors import ArtifactError, UnknownNameError
from lissome.core.events import EventStream
from lissome.core.manifest import Base
from lissome.export.gguf import source_type
from lissome.models.model import Model
from lissome.pipeline.loading import adapters_of, licence_of, load


def made_from(model: Model) -> Base:
    """Name a model as what something is made from."""
    return Base(
        name=model.name,
        architecture=model.anatomy.architecture,
        sha256=model.source.sha256,
        adapters=adapters_of(model),
        license=licence_of(model),
        gguf_type=source_type(model),
    )


def base_of(folder: Path, known: Base, events: EventStream | None) -> Model:
    """Read what an artifact was made from: as it was called then, from here or from where the artifact lies.

    Args:
        folder: The artifact.
        known: What its manifest says.
        events: Where fetching and converting report their progress.

    Raises:
        ArtifactError: When there is nothing of that name, or another model.
    """
    beside = folder.absolute().parent / known.name
    places: list[str | Path] = [known.name]
    if beside.exists() and beside.resolve() != Path(known.name).resolve():
        places.append(beside)
    problem: ArtifactError | None = None
    for place in places:
        try:
            base = load(place, events=events)
        except UnknownNameError:
            continue
        except ArtifactError as error:
            problem = problem or error
            continue
        if known.sha256 is None or (base.source.sha256, adapters_of(base)) == (known.sha256, known.adapters):
            return base
        what = "its adapters differ" if base.source.sha256 == known.sha256 else "its sha256 differs"
        problem = problem or ArtifactError(f"{place} is not the model that {folder} was made from ({what}).")
    raise problem or ArtifactError(
        f"{folder} was made from {known.name!r}, which is not found from here; go to where that path holds."
    )
