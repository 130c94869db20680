"""The main job on the real demo model stays near one model in memory, and the plan says so beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lissome.core.errors import LissomeError
from lissome.data import assets

_JOB = """
import json, sys
import accelerate, peft, torch, transformers.models.llama.modeling_llama
import lissome
from lissome import pipeline
from lissome.cost.peak import give_back, peak_memory
options = json.loads(sys.argv[2])
with peak_memory() as peak:
    plan = pipeline.plan(**options)
    give_back()
    lissome.fit(out=sys.argv[1], **options)
print(json.dumps({"measured": peak.above, "predicted": plan.peak_memory, "weights": plan.original["disk"]}))
"""


JOBS = {
    "removal": {"budget": "block_params=97%", "settings": ["recover_steps=3"]},
    "plain": {"method": "shears", "settings": ["windows=2", "steps=2"]},
    "masked": {"method": "shears", "settings": ["windows=2", "steps=2", "adapter=masked"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_peak_memory_of_a_job(job: str, tmp_path: Path) -> None:
    try:
        assets.fetch("smollm2-135m")
    except LissomeError as reason:
        pytest.skip(f"the demo model is not here: {reason}")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", _JOB, str(tmp_path / "out"), json.dumps(JOBS[job])]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(answer.stdout.splitlines()[-1])
    if job == "removal":
        assert found["measured"] <= 2.5 * found["weights"], found
    assert 0.8 <= found["predicted"] / found["measured"] <= 1.2, found
