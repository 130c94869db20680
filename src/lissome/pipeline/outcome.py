"""What a finished federation leaves: an artifact with the global model, and what happened in every round."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes

from lissome.core.errors import ArtifactError
from lissome.core.files import json_text
from lissome.core.manifest import MANIFEST, Manifest, Step, read_manifest
from lissome.core.metrics import Metric
from lissome.data.partition import PARTITION
from lissome.engine.evaluate import versions
from lissome.engine.federate.bound import TASK, Bound
from lissome.engine.federate.mutual import knowledge
from lissome.engine.federate.norms import WHOLE, take_moments
from lissome.engine.federate.program import Program
from lissome.engine.federate.rounds import Federation, Round
from lissome.models.artifact import save_model
from lissome.models.space import Subnet
from lissome.pipeline.base import made_from
from lissome.pipeline.federation import FederationJob
from lissome.pipeline.loading import RECIPE, check_finished
from lissome.pipeline.run import RESULT, RunFolder
from lissome.pipeline.sizes import SIZES, sizes_file

CLASSIFIER, CLASSES = "task.safetensors", "classes.json"
"""Files of an artifact with what the task added to the model, such as its classifier, and the names of its classes."""


def read_federated(folder: Path) -> Manifest:
    """Read the manifest of a federation's result.

    Raises:
        ArtifactError: When the folder is none, or of a federation that is not finished.
    """
    check_finished(folder)
    if not all((folder / name).is_file() for name in (MANIFEST, RECIPE, PARTITION)):
        raise ArtifactError(f"{folder} is not the result of a federation; give a folder that lissome federate wrote.")
    return read_manifest(folder)


def stage(job: FederationJob, federation: Federation, folder: RunFolder, seconds: float, peak: float) -> None:
    """Put the artifact of a federation together: its model, what the task adds, ledger, audit log and rounds."""
    program, last = federation.program, federation.rounds[-1]
    planner = getattr(program, "planner", None)
    model = program.outcome() or job.model
    bound = Bound.of(job.model, job.model, job.silos.server(job.model).around(job.model), None)
    bound.load({name: value for name, value in program.tensors.items() if name in bound.parameters})
    take_moments(job.model, program.tensors, WHOLE)
    # What the task adds to a knowledge network is as large as what it adds to the whole model.
    bound.load({name: value for name, value in knowledge(program.tensors).items() if name.startswith(TASK)})
    task = {name: value for name, value in bound.values(list(bound.parameters)).items() if name.startswith(TASK)}
    state = folder.state / "server"
    report = _report(federation, seconds)
    step = Step(
        method=job.recipe.step.name, config=job.recipe.step.config.to_mapping(), seed=job.recipe.seed,
        data=job.silos.partition.fingerprint, after=_metrics(last), seconds=seconds, peak_memory=peak,
        versions=versions(), details={"rounds": last.number, "bytes": report["bytes"]},
    )  # fmt: skip
    manifest = Manifest(
        name=f"{job.model.name} after {job.recipe.step.name}",
        base=made_from(job.model),
        tags=tuple(sorted(job.method.leaves | {"dense"})),
        space=planner.space.to_json() if planner is not None and "elastic" in job.method.leaves else None,
        layers=tuple(model.anatomy.layers()), lineage=(step,),
    )  # fmt: skip
    audit = state / "audit.jsonl"
    extras = {
        RESULT: json_text({**report, "job": job.identity()}, RESULT).encode(),
        RECIPE: job.recipe.to_toml().encode(), "ledger.csv": federation.ledger.csv().encode(),
        "audit.jsonl": audit.read_bytes() if audit.exists() else b"",
        PARTITION: (folder.state / PARTITION).read_bytes(),
    }  # fmt: skip
    if task:
        extras[CLASSIFIER] = safetensors_bytes(task)
        extras[CLASSES] = json.dumps(list(job.classes)).encode()
    sizes = sizes_file(program)
    if sizes is not None:
        extras[SIZES] = sizes
    save_model(model, folder.staged, manifest=manifest, extras=extras)
    if (folder.state / "clients").is_dir():
        # What clients kept is no part of the artifact, hence not listed; what they are known by goes nowhere.
        ignored = shutil.ignore_patterns("token", "events.jsonl")
        shutil.copytree(folder.state / "clients", folder.staged / "clients", dirs_exist_ok=True, ignore=ignored)


def _report(federation: Federation, seconds: float) -> dict[str, Any]:
    total = federation.bytes()
    events = Counter(str(line["event"]) for line in federation.audit.lines)
    return {
        "rounds": [one.to_json() for one in federation.rounds], "bytes": total.to_json(),
        "subnets": histogram(federation.program, federation.rounds), "audit": dict(events), "seconds": seconds,
    }  # fmt: skip


def histogram(program: Program, rounds: Sequence[Round]) -> dict[str, int]:
    """How many orders to train each size of Subnet had, by its share of the parameters in percent."""
    planner = getattr(program, "planner", None)
    sizes: Counter[str] = Counter()
    for one in rounds:
        for client in one.clients:
            chosen = one.subnets.get(client)
            share = 1.0
            if chosen is not None and planner is not None:
                share = planner.figures(Subnet(chosen))["params"] / planner.full["params"]
            sizes[f"{share:.0%}"] += 1
    return dict(sorted(sizes.items(), key=lambda item: int(item[0][:-1])))


def _metrics(last: Round) -> tuple[Metric, ...]:
    lower = {"loss", "ppl"}
    return tuple(
        Metric(name=name, value=value, better="lower" if name.rpartition("/")[2] in lower else "higher")
        for name, value in last.metrics.items()
    )
