"""A server and clients that join it by commands of their own: what they read, and that any of them may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lissome.cli.main import main
from lissome.core.errors import ConfigError, DataError, FederationError, LissomeError
from lissome.core.files import read_json
from lissome.data.images import read_images
from lissome.data.parts import PICTURES
from lissome.engine.federate.flower.credentials import make_credentials
from lissome.pipeline.federating import federate
from lissome.pipeline.federation import FederationJob, FederationRecipe
from lissome.pipeline.silos import check_rows, own_lesson
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model
from tests.pipeline.deployed import (
    apps,
    command,
    contents,
    eventually,
    round_of,
    running,
    secret_keys,
    secret_rows,
    tokens,
    weights,
)
from tests.pipeline.federated import RECIPE, make_place
from tests.pipeline.test_federated_images import RECIPE as PICTURE_RECIPE
from tests.pipeline.test_federated_images import place as picture_place

pytest.importorskip("flwr", reason="needs flwr: pip install 'lissome[federate]'")

from lissome.engine.federate.flower.ports import free_port
from lissome.engine.federate.flower.processes import Processes
from lissome.pipeline.flower import EVENTS, _noting_worker, join_federation, local_nodes, worker_of

LONG = 900.0  # seconds: every order starts a process that imports torch, on a machine that may be busy


class Machines:
    """The commands of a federation of two clients, each with a folder that only it reads."""

    def __init__(self, place: Path) -> None:
        self.place, self.out, self.port = place, place / "trained", free_port()
        self.flower = self.out / ".run" / "flower"
        self.parts = {one["name"]: one for one in dealt(place)}
        self.keys = make_credentials(place / "keys", list(self.parts))
        self.joined = {name: self.join(name) for name in self.parts}
        self.server = self.serve()

    def serve(self) -> subprocess.Popen[bytes]:
        return command(
            "server", self.place / "recipe.toml", "--out", self.out, "--credentials", self.keys.folder,
            "--port", self.port, log=self.place / "server.log",
        )  # fmt: skip

    def join(self, name: str) -> subprocess.Popen[bytes]:
        part = self.parts[name]
        return command(
            "join", f"127.0.0.1:{self.port}", "--data", part["path"], "--state", self.state(name),
            "--credentials", self.keys.client(name), "--set", f"budget={part['budget']}",
            "--set", f"kind={part['kind']}", log=self.place / f"{name}.log",
        )  # fmt: skip

    def state(self, name: str) -> Path:
        return self.place / "private" / name

    def goes_on(self) -> int:
        """Wait for the end of a round that begins now; return its number."""
        number = max(0, round_of(self.out)) + 1
        eventually(lambda: round_of(self.out) >= number or self.server.poll() is not None, LONG)
        assert self.server.poll() is None, self.said("server")
        return round_of(self.out)

    def said(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def ended(self) -> int:
        return self.server.wait(LONG)


def dealt(place: Path) -> list[dict[str, str]]:
    """Deal the data of a place out by the command for it."""
    assert main(["federate", "parts", str(place / "recipe.toml"), "--out", str(place / "parts")]) == 0
    job = FederationJob(FederationRecipe.read(place / "recipe.toml"))
    return [
        {
            "name": name, "path": str(place / "parts" / name), "budget": job.kinds[name].budget,
            "kind": job.kinds[name].name,
        }
        for name in job.silos.names
    ]  # fmt: skip


@pytest.mark.slow
def test_whoever_is_killed_the_result_is_that_of_one_process(tmp_path: Path) -> None:
    """Over TLS, with keys: a client while it works, the server's command, its SuperLink and its app, a round apart."""
    place = make_place(tmp_path)
    text = RECIPE.replace("clients = 4", "clients = 2").replace("rounds = 2", "rounds = 6\nleast = 2")
    (place / "recipe.toml").write_text(text.replace("[[device]]", "evaluate_every = 0\n[[device]]", 1))
    federate(place / "recipe.toml", out=place / "inprocess")
    machines = Machines(place)
    try:
        _kill_one_after_the_other(machines)
        assert machines.ended() == 0, machines.said("server")
    finally:
        for process in (machines.server, *machines.joined.values()):
            process.terminate()  # an interrupt would not reach them where a shell runs tests in the background
            process.wait(60)
        for folder in (machines.flower, *(machines.state(name) / "flower" for name in machines.parts)):
            Processes(folder, {}).stop_former()  # what those left that were killed, where the test has failed
    assert weights(machines.out) == weights(place / "inprocess")
    states = place / "private"
    known = tokens(states)
    assert len(known) == 2
    logs = {
        file: file.read_bytes() for file in (*place.glob("*.log"), *states.rglob("*.log"), *states.rglob("*.jsonl"))
    }
    assert len(logs) >= 1 + 2 + 2 * 2, "the server, each client's command, and its node and app"
    for secret in (*secret_keys(machines.keys.folder), *secret_rows(), *known):
        for file, content in (*logs.items(), *contents(machines.out, "clients")):
            assert secret not in content, file


def _kill_one_after_the_other(machines: Machines) -> None:
    number = machines.goes_on()
    name, lost = next(iter(machines.joined.items()))
    flower = machines.state(name) / "flower"
    eventually(lambda: bool(apps(flower, "flwr-clientapp")), LONG)
    assert round_of(machines.out) == number, "it works on the next round"
    lost.kill()
    os.killpg(running(flower)["node"], signal.SIGKILL)
    assert lost.wait() == -signal.SIGKILL
    machines.joined[name] = machines.join(name)

    machines.goes_on()
    machines.server.kill()
    machines.server.wait()
    for process in apps(machines.flower):  # as when the machine fails; what lives on is in test_backends
        process.kill()
    machines.server = machines.serve()

    machines.goes_on()
    os.kill(running(machines.flower)["superlink"], signal.SIGKILL)
    assert machines.ended() == FederationError.exit_code
    assert "the SuperLink died" in machines.said("server")
    assert "the same again continues" in machines.said("server")
    machines.server = machines.serve()

    machines.goes_on()
    for app in apps(machines.flower, "flwr-serverapp"):
        app.kill()
    assert machines.ended() == FederationError.exit_code
    assert "then give the same command again" in machines.said("server")
    machines.server = machines.serve()


TOKENS = """
model = "model"
seed = 5
[data]
source = "pages.jsonl"
learn = "tokens"
length = 16
[partition]
scheme = "natural"
[federation]
rounds = 2
[[step]]
method = "fedavg"
lr = 0.01
"""


def pages(folder: Path) -> Path:
    """Write a toy language model, documents of three owners, and a recipe."""
    model = toy_model("llama", vocab_size=TOY_VOCABULARY, num_hidden_layers=2, max_position_embeddings=64)
    replace(model, tokenizer=toy_tokenizer()).save(folder / "model")
    rows = [{"text": f"page {at}:\r\n" + "some words, " * 30, "client": "abc"[at % 3]} for at in range(15)]
    (folder / "pages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.toml").write_text(TOKENS)
    return folder


def pictures(folder: Path) -> Path:
    place = picture_place(folder, "vit")
    (place / "recipe.toml").write_text(PICTURE_RECIPE + 'method = "fedavg"\nlr = 0.01\n')
    return place


def context(job: FederationJob, config: Mapping[str, Any], **more: str) -> Any:
    """What Flower gives to a node's app: what the run says, and what the node's own configuration says."""
    run = {
        "recipe": job.recipe.to_toml(), "federation": job.name, "classes": json.dumps(job.classes),
        "partition": job.silos.partition.fingerprint if job.silos.names else "",
    }  # fmt: skip
    return SimpleNamespace(run_config={**run, **more}, node_config=dict(config))


def learned(lesson: Any) -> list[Any]:
    """All tensors of a lesson's two parts."""
    found: list[Any] = []
    for part in (lesson.data, lesson.held_out):
        found += [part] if isinstance(part, torch.Tensor) else [torch.utils.data.default_collate([*part])]
    return found


@pytest.mark.parametrize("made", [make_place, pictures, pages])
def test_every_node_reads_a_folder_of_its_own_and_learns_the_same(made: Any, tmp_path: Path) -> None:
    job = FederationJob(FederationRecipe.read(made(tmp_path) / "recipe.toml"))
    nodes = local_nodes(job, tmp_path / "parts", tmp_path / "private")
    assert [node.name for node in nodes] == list(job.silos.names)
    (tmp_path / job.recipe.data.source).rename(tmp_path / "elsewhere")
    for node in nodes:
        place = Path(str(node.config["data"]))
        assert place == tmp_path / "parts" / node.name
        name, lesson, digest = own_lesson(
            place, "", job.model, job.recipe.data, classes=job.classes, seed=job.recipe.seed,
            dealt=job.silos.partition.fingerprint,
        )  # fmt: skip
        assert name == node.name
        assert digest == read_json(place / "part.json")["sha256"]
        torch.testing.assert_close(learned(lesson), learned(job.silos.client(name, job.model)), rtol=0, atol=0)


def test_a_folder_that_is_not_this_clients_is_refused_before_it_joins(tmp_path: Path) -> None:
    job = FederationJob(FederationRecipe.read(pictures(tmp_path) / "recipe.toml"))
    one, other, *_ = local_nodes(job, tmp_path / "parts", tmp_path / "private")
    place = Path(str(one.config["data"]))
    with pytest.raises(ConfigError, match=rf"holds what was dealt out to {one.name}, not to {other.name}; leave name"):
        join_federation("127.0.0.1:9", data=place, state=tmp_path / "state", facts={"name": other.name})
    with pytest.raises(ConfigError, match="leave name out"):
        worker_of(job.recipe.to_toml(), context(job, {**one.config, "name": other.name}))
    (place / PICTURES).write_bytes((Path(str(other.config["data"])) / PICTURES).read_bytes())
    with pytest.raises(DataError, match=r"data\.npz has sha256 \w+…, the partition says"):
        join_federation("127.0.0.1:9", data=place, state=tmp_path / "state")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="has no images that say"):
        join_federation("127.0.0.1:9", data=empty, state=tmp_path / "state")
    (empty / "rows.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not JSON"):
        join_federation("127.0.0.1:9", data=empty / "rows.jsonl", state=tmp_path / "state")
    (empty / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n' * 2)
    for name, words in (("", "say who this client is with --set name=NAME"), ("a b", "'a b' is not a name")):
        with pytest.raises(LissomeError, match=words):
            join_federation("127.0.0.1:9", data=empty / "rows.jsonl", state=tmp_path / "state", facts={"name": name})
    assert not (tmp_path / "state").exists()
    with pytest.raises(DataError, match="the federation dealt out 000000000000"):
        worker_of(job.recipe.to_toml(), context(job, other.config, partition="0" * 64))
    with pytest.raises(DataError, match="the federation learns 2 classes"):
        worker_of(job.recipe.to_toml(), context(job, other.config, classes='["0", "1"]'))


def test_a_server_learns_neither_where_rows_lie_nor_what_is_in_them(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    own = RECIPE.replace("clients = 4\nalpha = 0.5", 'scheme = "own"')
    job = FederationJob(FederationRecipe.from_toml(own, place))
    (place / "mine.jsonl").write_text('{"text": "fox", "label": "animals"}\n{"text": "fern", "label": "plants"}\n')
    node = {"data": str(place / "mine.jsonl"), "state": str(tmp_path / "state"), "name": "me"}
    for name, words in (("mine.jsonl", "its data cannot be used"), ("gone.jsonl", "its data cannot be used")):
        with pytest.raises(FederationError, match=rf"^{words}; its own log says why$"):
            _noting_worker(context(job, {**node, "data": str(place / name)}))
    said = (tmp_path / "state" / EVENTS).read_text()
    assert "mine.jsonl:2: unknown label 'plants'" in said
    assert "gone.jsonl cannot be read" in said


def test_pictures_of_a_clients_own_are_numbered_as_the_federation_says(tmp_path: Path) -> None:
    place = pictures(tmp_path)
    text = (place / "recipe.toml").read_text()
    own = text.replace("clients = 3", 'scheme = "own"').replace("alpha = 1.0\n", "").replace("most = 150\n", "")
    job = FederationJob(FederationRecipe.from_toml(own, place))
    images = read_images(place / "pictures.npz")
    few = images.some([at for at, label in enumerate(images.labels) if label == 2])
    np.savez(place / "mine.npz", image=np.stack([one() for one in few.pictures]), label=np.array(few.labels))
    check_rows(place / "mine.npz")  # of one class, which the federation has others beside
    config = {"data": str(place / "mine.npz"), "state": str(tmp_path / "state"), "name": "me", "threads": 3}
    name, worker = worker_of(job.recipe.to_toml(), context(job, config))
    assert (name, worker.threads) == ("me", 3)
    lesson = own_lesson(place / "mine.npz", "me", job.model, job.recipe.data, classes=job.classes, seed=1)[1]
    assert {int(row["label"]) for row in lesson.data} == {2}
    np.savez(place / "mine.npz", image=np.stack([one() for one in few.pictures]), label=np.array(few.labels) + 9)
    with pytest.raises(DataError, match=r"mine\.npz: unknown label '11'"):
        worker_of(job.recipe.to_toml(), context(job, config))


def test_archives_say_whose_each_image_is(tmp_path: Path) -> None:
    place = pictures(tmp_path)
    with np.load(place / "pictures.npz") as arrays:
        image, label = arrays["image"], arrays["label"]
    np.savez(place / "pictures.npz", image=image, label=label, group=np.array(["ward", "clinic"])[np.arange(200) % 2])
    text = (place / "recipe.toml").read_text().replace("clients = 3", 'scheme = "natural"').replace("alpha = 1.0\n", "")
    job = FederationJob(FederationRecipe.from_toml(text, place))
    assert set(job.silos.names) == {"clinic", "ward"}
    for name, places in job.silos.partition.parts.items():
        assert {job.silos.pool[0].owners[at] for at in places} == {name}  # type: ignore[union-attr]


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5", "99999"])
def test_threads_that_cannot_be(given: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words")
    with pytest.raises(ConfigError, match=f"threads must be a number from 1 to 1024, got '{given}'"):
        join_federation("127.0.0.1:9", data=tmp_path / "text.txt", state=tmp_path / "s", facts={"threads": given})


@pytest.mark.slow
@pytest.mark.parametrize("made", [pictures, pages])
def test_a_deployment_learns_images_and_documents_as_one_process_does(made: Any, tmp_path: Path) -> None:
    place = made(tmp_path)
    federate(place / "recipe.toml", out=place / "inprocess")
    process = command(place / "recipe.toml", "--out", place / "out", "--backend", "deployment", log=place / "log")
    assert process.wait() == 0, (place / "log").read_text()
    assert weights(place / "out") == weights(place / "inprocess")
