"""Store a super-network that was searched among the models that ship with lissome.

    python -m tools.ship_supernet S supernet-resnet --budget "macs<=50%"

Afterwards ``lissome extract supernet-resnet --budget …`` cuts models out of it, on any machine, without data. Weights
are stored in float16. The figures in the index are those of what is extracted from the stored one within the budget, on
the examples that neither training nor search nor choice has seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from lissome import pipeline
from lissome.core.errors import ArtifactError
from lissome.core.files import json_text, sha256_file, write_text
from lissome.core.manifest import FileRecord, Manifest, read_manifest, write_manifest
from lissome.core.typed import as_json
from lissome.engine.objective import objective_of
from lissome.engine.search import Found
from lissome.models.artifact import WEIGHTS
from lissome.models.zoo import ZOO
from lissome.pipeline.job import data_for
from lissome.pipeline.supernets import ELASTIC, FOUND, STATISTICS, read_elastic
from tools._shipping import enter

_KEPT = ("config.json", WEIGHTS, ELASTIC, FOUND, STATISTICS)


def ship_supernet(
    place: Path, name: str, *, out: Path = ZOO, budget: str = "macs<=50%", summary: str | None = None
) -> dict[str, float]:
    """Store a super-network and enter it into the index.

    Args:
        place: What `lissome supernet` made and `lissome search` searched.
        name: What it is to be called.
        out: Folder of all models that ship.
        budget: Of the extracted model whose figures the index states.
        summary: One line (default: what its manifest calls it).

    Returns:
        The figures.

    Raises:
        ArtifactError: When it was not searched.
    """
    elastic, manifest = read_elastic(place), read_manifest(place)
    if not (place / FOUND).is_file():
        raise ArtifactError(f"{place} was not searched yet; give: lissome search {place} --trials 100")
    (out / name).mkdir(parents=True)
    for file in _KEPT:
        if (place / file).is_file():
            (out / name / file).write_bytes((place / file).read_bytes())
    halved: dict[str, Tensor] = {
        key: value.half() if value.is_floating_point() else value for key, value in load_file(place / WEIGHTS).items()
    }
    save_file(halved, out / name / WEIGHTS, metadata={"format": "pt"})
    source = Path(elastic.data).name if elastic.data else None  # not where it lay on this machine
    write_text(out / name / ELASTIC, json_text(as_json(replace(elastic, data=source)), ELASTIC, indent=2))
    write_manifest(out / name, _of_files(manifest, out / name, [elastic.data, manifest.base.name]))
    found = _figures(out / name, elastic.data, elastic.seed, budget)
    points = len(Found.load(place / FOUND).front)
    enter(
        name, out, summary=summary or manifest.name, found=found,
        training={"method": elastic.method, "points": points, "budget": budget, "seed": elastic.seed},
    )  # fmt: skip
    return found


def _of_files(manifest: Manifest, folder: Path, named: Sequence[str | None]) -> Manifest:
    """The manifest of what was stored: the files that are there, and by its name alone what had a path."""
    files = {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(folder.iterdir())
        if path.name in _KEPT
    }
    text = json.dumps(replace(manifest, files=files).to_json())
    for name in named:
        if name:
            text = text.replace(json.dumps(name)[1:-1], json.dumps(Path(name).name)[1:-1])
    return Manifest.from_json(json.loads(text))


def _figures(folder: Path, data: str | None, seed: int, budget: str) -> dict[str, float]:
    """What is extracted within a budget, on examples that nothing was chosen by, and its share of the whole."""
    with tempfile.TemporaryDirectory() as work:
        report = pipeline.extract_for(folder, budget=budget, out=Path(work) / "small")
        small = pipeline.load(Path(work) / "small")
        _, splits = data_for(small, data, seed=seed, searched=True)
        figures = objective_of(splits).figures(small, "test")
    shares = {f"{term}_share": report.figures[term] / report.original[term] for term in ("macs", "params")}
    return {**figures, **shares}


def main(arguments: Sequence[str] | None = None) -> None:
    """Store what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.ship_supernet", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("place", metavar="S", type=Path, help="a super-network that was searched")
    parser.add_argument("name", metavar="NAME", help="what it is to be called")
    parser.add_argument("--out", type=Path, default=ZOO, help="where its folder goes (default: into the package)")
    parser.add_argument("--budget", default="macs<=50%", help="of the model whose figures the index states")
    parser.add_argument("--summary", help="one line (default: what its manifest calls it)")
    asked = parser.parse_args(arguments)
    found = ship_supernet(asked.place, asked.name, out=asked.out, budget=asked.budget, summary=asked.summary)
    print(", ".join(f"{name} {value:.4f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
