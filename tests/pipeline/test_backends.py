"""The three back ends: the same tensors bit for bit, killed or not, and nobody in a deployment who does not belong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread, Timer
from types import SimpleNamespace

import psutil
import pytest

from lissome.core.errors import BudgetError, ConfigError, DataError, FederationError
from lissome.core.events import Event, EventStream
from lissome.data.parts import write_parts
from lissome.engine.federate.flower.credentials import Credentials, check_own, make_credentials
from lissome.pipeline.federating import federate
from lissome.pipeline.federation import FederationJob, FederationRecipe
from tests.pipeline.deployed import (
    alive,
    alter,
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
from tests.pipeline.federated import RECIPE, WORDS, make_place

pytest.importorskip("flwr", reason="needs flwr: pip install 'lissome[federate]'")

from flwr.common.config import parse_config_args

from lissome.engine.federate.flower import deployment, ports
from lissome.engine.federate.flower.deployment import Deployment, Node, join
from lissome.engine.federate.flower.ports import check_address, listens
from lissome.pipeline import flower
from lissome.pipeline.flower import join_federation, worker_of

ROUNDS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("backends"))
    text = RECIPE.replace("clients = 4", "clients = 2").replace("rounds = 2", f"rounds = {ROUNDS}")
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> str:
    """Hash of the weights of the undisturbed run in this process."""
    federate(place / "recipe.toml", out=place / "inprocess")
    return weights(place / "inprocess")


def started(place: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    return command(place / "recipe.toml", "--out", out, *options)


@pytest.mark.slow
def test_flowers_simulation_gives_the_same_tensors(place: Path, expected: str) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'lissome[federate-ray]'")
    process = started(place, place / "ray", "--backend", "ray")  # Ray leaves files open, so not in this process
    assert process.wait() == 0
    assert weights(place / "ray") == expected


@pytest.mark.slow
def test_a_deployment_gives_the_same_tensors_though_server_and_client_are_killed(place: Path, expected: str) -> None:
    """With TLS and known nodes; the command is killed after a round, and a client in the middle of the second run."""
    out = place / "deployment"
    flower = out / ".run" / "flower"
    secure = ("--backend", "deployment", "--credentials", str(place / "keys"))
    process = started(place, out, *secure)
    eventually(lambda: round_of(out) >= 1 or process.poll() is not None)
    assert process.poll() is None
    orphans = list(running(flower).values())
    process.kill()
    process.wait()
    assert any(psutil.pid_exists(pid) for pid in orphans), "what it had started lives on"
    process = started(place, out, *secure)
    eventually(lambda: {"node-0", "run"} <= running(flower).keys() and not set(orphans) & set(running(flower).values()))
    assert not any(alive(pid) for pid in orphans)
    os.killpg(running(flower)["node-0"], signal.SIGKILL)
    logs, known = keep_logs(out, process)
    assert process.returncode == 0
    assert weights(out) == expected
    for secret in (*secret_keys(place / "keys"), *secret_rows(), *known):
        assert secret not in logs
        for file, content in contents(out, "clients"):
            assert secret not in content, file


def keep_logs(out: Path, process: subprocess.Popen[bytes]) -> tuple[bytes, set[bytes]]:
    """What the server wrote down, and what clients were known by, before the state of the run was removed."""
    logs, known = dict[Path, bytes](), set[bytes]()
    while process.poll() is None:
        try:
            known |= tokens(out / ".run" / "clients")
            for file in (*(out / ".run" / "flower").glob("*.log"), *(out / ".run" / "server").glob("*.*")):
                logs[file] = file.read_bytes()
        except FileNotFoundError:
            pass
        time.sleep(0.5)
    assert logs
    assert len(known) == 2
    return b"".join(logs.values()), known


@pytest.mark.slow
def test_who_does_not_belong_is_refused(tmp_path: Path) -> None:
    """A node with a key that the server does not know, and a server whose certificate another authority signed."""
    known = make_credentials(tmp_path / "keys", ["alice"])
    strangers = make_credentials(tmp_path / "others", ["mallory"])
    app = tmp_path / "app"
    app.mkdir()
    alice = Node(name="alice", key=known.client("alice") / "key", public=known.client("alice") / "key.pub")
    server = Deployment(tmp_path / "server", app, [alice], security=known.server)
    with server.started():
        for name, credentials, authority, reason in (
            ("mallory", strangers, known.server.authority, "does not know its key"),
            ("alice", known, strangers.server.authority, "certificate verify failed"),
        ):
            node = Node(name=name, key=credentials.client(name) / "key")
            with pytest.raises(FederationError, match=f"the node ended: .*{reason}"):
                join(node, server.address, authority, tmp_path / name)
        assert server.process("node-0").poll() is None, "who belongs stays"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["name", "signature"])
def test_a_certificate_that_was_tampered_with_is_refused(part: str, tmp_path: Path) -> None:
    """The right authority's certificate, with bytes of it changed: nobody joins, nor can the server's own commands."""
    made = make_credentials(tmp_path / "keys", ["alice"])
    alter(made.server.certificate, part)
    server = Deployment(tmp_path / "server", tmp_path, [], security=made.server)
    try:
        server.start_superlink()
        server.configure()
        alice = Node(name="alice", key=made.client("alice") / "key")
        with pytest.raises(FederationError, match=r"the node ended: .*certificate verify failed"):
            join(alice, server.address, made.client("alice") / "ca.crt", tmp_path / "alice")
        with pytest.raises(FederationError, match="alice could not be registered"):
            server.register("alice", made.client("alice") / "key.pub")
    finally:
        server.stop()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert listens("127.0.0.1", port)
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken; give another one with --port"):
            Deployment(tmp_path, tmp_path, [], port=port).start_superlink()
    assert not listens("127.0.0.1", port)
    assert not listens("no.such.host.invalid", 80)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [("127.0.0.1", 70_000, "70000 is no port"), ("127.0.0.1", -1, "is no port"), ("256.1.1.1", 0, "can listen")],
)
def test_places_that_nothing_can_listen_at(host: str, port: int, words: str, tmp_path: Path) -> None:
    keys = make_credentials(tmp_path / "keys", [])
    with pytest.raises(ConfigError, match=words):
        Deployment(tmp_path, tmp_path, [], security=keys.server, host=host, port=port)


def test_credentials_that_cannot_be_made(tmp_path: Path) -> None:
    for host in ("", "not a host!", "-x"):
        with pytest.raises(ConfigError, match="is not a host"):
            make_credentials(tmp_path / "keys", [], hosts=[host])
    assert not (tmp_path / "keys").exists()
    made = make_credentials(tmp_path / "keys", ["alice"], hosts=["fed.example.org", "10.0.0.1", "::1"])
    for names in (["Alice"], ["bob", "BOB"]):
        with pytest.raises(ConfigError, match=r"differs from '(alice|bob)' in case alone"):
            make_credentials(tmp_path / "keys", names)
    assert list(made.clients()) == ["alice"]
    made.server.authority.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"ca\.key or ca\.crt beside it is missing or damaged"):
        make_credentials(tmp_path / "keys", ["bob"])
    assert not made.client("bob").exists()


def test_who_comes_without_credentials_is_told_that_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's node would try for ever, and say nothing but that it does."""
    made = make_credentials(tmp_path / "keys", [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server.certificate, made.server.key)
    monkeypatch.setattr(deployment, "node_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(99)"])
    with socket.create_server(("127.0.0.1", 0)) as plain, context.wrap_socket(plain, server_side=True) as server:
        port = server.getsockname()[1]
        Thread(target=greet, args=(server,), daemon=True).start()
        with pytest.raises(ConfigError, match="lets in who has credentials alone"):
            join(Node(name="alice"), f"127.0.0.1:{port}", None, tmp_path / "alice")


def test_why_a_node_was_not_let_in_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    events = EventStream(lambda event: said.append(event.message))
    line = [sys.executable, "-c", "print('ERROR : certificate verify failed')"]
    monkeypatch.setattr(deployment, "node_command", lambda *_: line)
    monkeypatch.setattr(deployment, "_ENDING_AT_ONCE", 0.0)  # as on a busy machine, where Python takes long to start
    monkeypatch.setattr(deployment, "_RESTARTS", 3)
    with pytest.raises(FederationError, match="the node ended: ERROR : certificate verify failed"):
        join(Node(name="alice"), "127.0.0.1:9", tmp_path / "ca.crt", tmp_path / "alice", events)
    assert sum("certificate verify failed" in one for one in said) == 1


def test_a_key_that_is_not_known_is_told_of_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = [sys.executable, "-c", "print('ERROR : Exit Code: 305 [code: 2004] Failed to activate SuperNode.')"]
    monkeypatch.setattr(deployment, "node_command", lambda *_: line)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(FederationError, match=r"ended: the server does not know its key, .* --client NAME"):
            join(Node(name="alice"), address, tmp_path / "ca.crt", tmp_path / "alice")


def test_a_client_is_told_that_the_server_is_gone_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    servers = [socket.create_server(("127.0.0.1", 0))]
    host, port = servers[0].getsockname()

    def hear(event: Event) -> None:
        said.append(event.message)
        if "nothing listens" in event.message:
            servers.append(socket.create_server((host, port)))
        if "again" in event.message and "nothing" not in event.message:
            raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "node_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(99)"])
    monkeypatch.setattr(ports, "LOOKING", 0.0)
    closing = Timer(1.5, servers[0].close)
    closing.start()
    with pytest.raises(KeyboardInterrupt):
        join(Node(name="alice"), f"{host}:{port}", tmp_path / "ca.crt", tmp_path / "alice", EventStream(hear))
    servers[1].close()
    assert len(said) == 3 and "the federation is over, or its server is started anew" in said[1]


def greet(server: ssl.SSLSocket) -> None:
    while server.fileno() >= 0:
        with contextlib.suppress(OSError):  # who only looks whether somebody listens says nothing
            server.accept()[0].close()


def test_credentials_may_be_named_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_credentials(Path("keys"), [])
    found = Credentials(folder=Path("keys")).server.resolved()
    assert found.key == tmp_path / "keys" / "server.key", "Flower's processes run in another folder"
    with pytest.raises(ConfigError, match=r"other/ca\.crt is not there; make it with: lissome federate credentials"):
        Credentials(folder=Path("other")).server.resolved()


@pytest.mark.parametrize("address", ["fed.example.org", "fed.example.org:", ":8443", "x:http", "x:0", "x:70000"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        check_address(address)
    assert check_address("fed.example.org:8443") == ("fed.example.org", 8443)


def test_rows_that_were_changed_are_refused_before_joining(place: Path, tmp_path: Path) -> None:
    job = FederationJob(FederationRecipe.read(place / "recipe.toml"))
    parts = write_parts(job.silos.pool[0], job.silos.partition, tmp_path)
    part = next(iter(parts.values()))
    with (part / "data.jsonl").open("a") as file:
        file.write('{"text": "one more", "label": "tools"}\n')
    with pytest.raises(DataError, match="the partition says"):
        join_federation("127.0.0.1:9", data=part, state=tmp_path / "state")
    with pytest.raises(BudgetError, match="did you mean"):
        join_federation("127.0.0.1:9", data=part, state=tmp_path / "state", facts={"budget": "parms<=50%"})
    with pytest.raises(ConfigError, match="largest 'lots' is not an amount"):
        join_federation("127.0.0.1:9", data=part, state=tmp_path / "state", facts={"largest": "lots"})


@pytest.mark.parametrize(("name", "what"), [("ca.crt", "certificate"), ("key", "private key")])
def test_damaged_credentials_are_refused_before_joining(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's node would die of them while its process lives on."""
    monkeypatch.setattr(flower, "join", lambda *_, **__: pytest.fail("it joins"))
    own = make_credentials(tmp_path / "keys", ["alice"]).client("alice")
    (tmp_path / "text.txt").write_text("some words")
    check_own(own)
    content = bytearray((own / name).read_bytes())
    start = content.index(b"\n") + 1
    content[start : start + 2] = b"zz"
    (own / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} cannot be read as a {what} \(.*\); have its owner give it again"):
        join_federation(
            "127.0.0.1:9", data=tmp_path / "text.txt", state=tmp_path / "s", credentials=own, facts={"name": "alice"}
        )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("value", ['a "b" c', "C:\\data\\mine", "both ' and \"", "a = b", "two\nlines", "plain"])
def test_nodes_are_told_any_text(value: str) -> None:
    config = {"kind": value, "threads": 3, "state": "/tmp/x"}
    words = deployment.node_command(Node(name="alice", config=config), "127.0.0.1:9", None)
    assert parse_config_args([words[words.index("--node-config") + 1]]) == config


def test_a_node_takes_orders_of_the_size_that_it_says(place: Path, tmp_path: Path) -> None:
    recipe = (place / "recipe.toml").read_text().replace('"model"', f'"{place / "model"}"')
    recipe = recipe.replace('"rows.jsonl"', f'"{place / "rows.jsonl"}"')
    config = {"data": str(place / "rows.jsonl"), "state": str(tmp_path), "name": "alice", "largest": "2KB"}
    context = SimpleNamespace(node_config=config, run_config={"classes": json.dumps(sorted(WORDS))})
    name, worker = worker_of(recipe, context)
    assert name == "alice"
    worker.check_size(2000)
    with pytest.raises(FederationError, match="2001 bytes, this client takes 2000"):
        worker.check_size(2001)


def test_credentials_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    made = make_credentials(tmp_path, ["alice"], hosts=["fed.example.org"])
    secret = [made.folder / "ca.key", made.server.key, made.client("alice") / "key"]
    assert [file.stat().st_mode & 0o777 for file in secret] == [0o600] * 3
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    make_credentials(tmp_path, ["alice", "bob"])
    assert {file: file.read_bytes() for file in before} == before, "nobody is locked out"
    assert list(Credentials(folder=tmp_path).clients()) == ["alice", "bob"]
    (made.client("bob") / "ca.crt").unlink()  # as a command that was cut short leaves it
    make_credentials(tmp_path, ["bob"])
    assert (made.client("bob") / "ca.crt").read_bytes() == made.server.authority.read_bytes()
