"""The server as a client meets it: over a socket, in the interface's words, with limits that hold."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lissome.engine.decode import Decoder, DecoderSettings, Order, Piece, Session, write
from lissome.engine.decode.batching import Batcher
from lissome.engine.decode.cache import cache_named
from lissome.engine.decode.writing import Writer
from lissome.models.nested.folder import NestedFolder
from lissome.models.nested.make import make_folder
from lissome.ops.kernels import native
from tests.export.toys import model_of

pytest.importorskip("starlette", reason="the extra serve is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from lissome.serve.answered import Answer
from lissome.serve.app import Limits, _Pieces, _Stream, application

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

PROMPT = "hello the world"


@dataclass
class Running:
    folder: NestedFolder
    batcher: Batcher
    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        connection.request(method, path, data, given)
        response = connection.getresponse()
        found = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return found

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        status, _, body = self.ask("POST", f"/v1/{path}", fields)
        return status, json.loads(body)

    def events(self, path: str, **fields: Any) -> list[Any]:
        status, headers, body = self.ask("POST", f"/v1/{path}", {**fields, "stream": True})
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def alone(self, ids: list[int], most: int, **more: Any) -> str:
        order = Order(prompt=tuple(ids), most=most, **more)
        return "".join(piece.text for piece in write(Session(Decoder(self.folder.file)), self.folder.text, order))

    def wait_idle(self) -> None:
        deadline = time.monotonic() + 30
        while self.batcher.active or self.batcher.waiting:
            assert time.monotonic() < deadline, "an order that nobody reads goes on"
            time.sleep(0.002)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> NestedFolder:
    model = model_of("llama", tokenizer=True, max_position_embeddings=4096)
    return NestedFolder.open(make_folder(model, tmp_path_factory.mktemp("nested") / "toy"))


@contextmanager
def running(
    folder: NestedFolder, limits: Limits | None = None, *, cells: int = 1024, cache: str = "f16", **more: Any
) -> Iterator[Running]:
    decoder = Decoder.open(folder.path, cells=cells, texts=more.get("slots", 4), **cache_named(cache))
    batcher = Batcher(decoder, folder.text, **more)
    app = application(batcher, "toy", limits)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Running(folder, batcher, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        batcher.close()
        listening.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(folder: NestedFolder) -> Iterator[Running]:
    with running(folder, slots=2, queue=4) as server:
        yield server


def test_health_and_models(server: Running) -> None:
    status, _, body = server.ask("GET", "/health")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    status, _, body = server.ask("GET", "/v1/models")
    listed = json.loads(body)["data"]
    assert [one["id"] for one in listed] == ["toy"]
    assert json.loads(server.ask("GET", "/v1/models/toy")[2]) == listed[0]
    status, _, body = server.ask("GET", "/v1/models/other/one")
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


def test_completions_are_what_generate_writes(server: Running) -> None:
    ids = server.folder.text.encode(PROMPT)
    wanted = server.alone(ids, 12)
    status, answer = server.post("completions", prompt=PROMPT, max_tokens=12, temperature=0, model="toy")
    assert status == 200
    assert answer["choices"] == [{"index": 0, "text": wanted, "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": len(ids), "completion_tokens": 12, "total_tokens": len(ids) + 12,
    }  # fmt: skip
    assert server.post("completions", prompt=ids, max_tokens=12, temperature=0)[1]["choices"] == answer["choices"]
    chunks = server.events("completions", prompt=PROMPT, max_tokens=12, temperature=0)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == wanted
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_chats_are_what_generate_writes(server: Running) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    ids = server.folder.text.chat(messages)
    wanted = server.alone(ids, 12)
    _, answer = server.post("chat/completions", messages=messages, max_tokens=12, temperature=0)
    assert answer["choices"][0]["message"]["content"] == wanted
    given = {"messages": messages, "max_tokens": 12, "temperature": 0, "stream_options": {"include_usage": True}}
    first, *chunks, usage = server.events("chat/completions", **given)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == wanted
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12


def test_seeds_and_stops(server: Running) -> None:
    given = {"prompt": PROMPT, "max_tokens": 30, "temperature": 1.5}
    one, two = (server.post("completions", **given, seed=3)[1]["choices"][0]["text"] for _ in range(2))
    assert one == two
    whole = server.post("completions", **{**given, "temperature": 0})[1]["choices"][0]["text"]
    stop = whole[9:11]
    choice = server.post("completions", **{**given, "temperature": 0}, stop=[stop])[1]["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_many_clients_at_once(server: Running) -> None:
    prompts = [PROMPT[: 3 + at % 9] for at in range(24)]
    wanted = {prompt: server.alone(server.folder.text.encode(prompt), 10) for prompt in prompts}

    def ask(prompt: str) -> int:
        while True:
            status, answer = server.post("completions", prompt=prompt, max_tokens=10, temperature=0)
            if status == 200:
                assert answer["choices"][0]["text"] == wanted[prompt]
                return 1
            assert status == 429
            assert answer["error"]["type"] == "rate_limit_error"
            time.sleep(0.01)

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(ask, prompts)) == 24


def stream(server: Running, most: int = 400) -> socket.socket:
    """A connection on which a stream was asked for and nothing was read."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    body = json.dumps({"prompt": PROMPT, "max_tokens": most, "temperature": 0, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def test_a_cancelled_stream_ends_the_work(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = server.batcher.decoder
    forward = decoder.forward

    def slower(*args: Any, **more: Any) -> Any:
        time.sleep(0.01)  # the whole text would take 4 s, more than it takes to see that a reader is gone
        return forward(*args, **more)

    monkeypatch.setattr(decoder, "forward", slower)
    connection = stream(server)
    assert connection.recv(1000)
    connection.close()
    server.wait_idle()
    assert max(decoder.seq_last(sequence) for sequence in range(2)) < 400
    assert server.post("completions", prompt=PROMPT, max_tokens=2)[0] == 200


def test_a_full_queue_refuses_and_recovers(folder: NestedFolder) -> None:
    with running(folder, slots=1, queue=1) as server:
        forward, hold = server.batcher.decoder.forward, threading.Event()

        def slow(*args: Any, forward: Any = forward, hold: Any = hold, **more: Any) -> Any:
            hold.wait(60)
            return forward(*args, **more)

        server.batcher.decoder.forward = slow  # type: ignore[method-assign]
        first = stream(server, 5)
        while not server.batcher.active:
            time.sleep(0.002)
        second = stream(server, 5)
        while not server.batcher.waiting:
            time.sleep(0.002)
        status, headers, body = server.ask("POST", "/v1/completions", {"prompt": PROMPT})
        assert status == 429
        assert headers["retry-after"] == "1"
        assert json.loads(body)["error"]["code"] == "queue_full"
        hold.set()
        for connection in (first, second):
            seen = b""
            while b"[DONE]" not in seen:
                seen += connection.recv(1000)
            connection.close()
        server.wait_idle()
        assert server.post("completions", prompt=PROMPT, max_tokens=2)[0] == 200


def test_slow_readers_slow_nobody_down_and_are_left(folder: NestedFolder) -> None:
    limits = Limits(patience=0.5)
    with running(folder, limits, cells=4000, slots=2) as server, ExitStack() as readers:
        for _ in range(4):
            slow = readers.enter_context(stream(server, 1200))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        assert server.post("completions", prompt=PROMPT, max_tokens=5)[0] == 200
        server.wait_idle()
        assert server.post("completions", prompt=PROMPT, max_tokens=5)[0] == 200


def test_a_reader_that_takes_nothing_is_left(folder: NestedFolder) -> None:
    """As the server sees it: sending does not come back."""
    batcher = Batcher(Decoder.open(folder.path, cells=512), folder.text, slots=1)

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never()

    async def main() -> _Pieces:
        pieces = _Pieces(batcher, Order(prompt=(5, 6), most=400))
        answer = Answer(chat=False, model="toy", prompt_tokens=2)
        await asyncio.wait_for(_Stream(pieces, answer, 0.05)({}, never, send), 30)
        return pieces

    assert asyncio.run(main()).job.cancelled
    batcher.close()


@contextmanager
def served(folder: NestedFolder) -> Iterator[tuple[int, psutil.Process]]:
    """The command in a process of its own, whose memory is the server's alone; yields its port and the process."""
    command = [sys.executable, "-m", "lissome", "serve", str(folder.path), "--port", "0", "--queue", "16"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"127\.0\.0\.1:(\d+)/", process.stderr.readline())
            assert found, "the server does not say where it listens"
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()


@pytest.mark.slow
def test_32_clients_for_a_minute(folder: NestedFolder) -> None:
    """No answer but the text or 429, and memory stays where it is."""
    with served(folder) as (port, server):
        end, waits, sizes = time.monotonic() + 60, list[float](), list[int]()

        def client(number: int, port: int = port, end: float = end, waits: list[float] = waits) -> list[int]:
            statuses = []
            while time.monotonic() < end:
                body = {"prompt": PROMPT[: 2 + number % 9], "max_tokens": 50, "stream": bool(number % 2)}
                start = time.monotonic()
                connection = HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read(1)
                waits.append(time.monotonic() - start)
                response.read()
                connection.close()
                statuses.append(response.status)
            return statuses

        with ThreadPoolExecutor(32) as pool:
            done = [pool.submit(client, number) for number in range(32)]
            while time.monotonic() < end:
                time.sleep(1)
                sizes.append(server.memory_info().rss)
            statuses = [status for one in done for status in one.result()]
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) > 100
        assert max(sizes[40:]) - max(sizes[10:20]) < 16e6
        print(  # noqa: T201  (shown with -s)
            f"first byte: p95 {np.percentile(waits, 95):.3f} s; {statuses.count(200)} texts, {len(statuses)} requests; "
            f"{max(sizes) / 1e6:.0f} MB"
        )


REFUSED = [
    (b"{", {}, 400), (b"[1]", {}, 400), (b'{"prompt": 5}', {}, 400), (b'{"prompt": "x", "n": 3}', {}, 400),
    (b'{"prompt": ""}', {}, 400), (b'{"prompt": [999999]}', {}, 400), (b'{"prompt": [-1]}', {}, 400),
    (b'{"prompt": "x", "model": "other"}', {}, 404),
    (b'{"prompt": "' + b"1" * 2000 + b'"}', {}, 400), (b'{"prompt": "' + b"1" * (1 << 20) + b'"}', {}, 413),
    (b'{"prompt": "x"}', {"Content_Type": "text/plain"}, 415),
    (b'{"prompt": "x", "top_k": 1' + b"0" * 30 + b"}", {}, 400),
    (b'{"prompt": "x", "seed": 1' + b"0" * 9999 + b"}", {}, 400),
]  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "status"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_are_json_and_leave_nothing_behind(
    server: Running, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, _, text = server.ask("POST", "/v1/completions", body, **headers)
    assert found == status
    assert json.loads(text)["error"]["message"]
    server.wait_idle()


def test_other_paths_and_methods(server: Running) -> None:
    for method, path, status in (("GET", "/", 404), ("GET", "/v1/completions", 405), ("DELETE", "/health", 405)):
        found, _, body = server.ask(method, path)
        assert found == status
        assert "error" in json.loads(body)


def test_an_order_that_fails_takes_no_other_with_it(folder: NestedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Writer.take

    def broken(self: Writer, logits: Any) -> Piece:
        if self._order.stop == ("fail",):
            raise TypeError("what nobody thought of")
        return take(self, logits)

    monkeypatch.setattr(Writer, "take", broken)
    with running(folder) as server, ThreadPoolExecutor(2) as pool:
        good = pool.submit(server.post, "completions", prompt=PROMPT, max_tokens=40, temperature=0)
        bad = pool.submit(server.post, "completions", prompt=PROMPT, max_tokens=40, stop="fail")
        assert bad.result() == (500, {"error": {"message": "writing failed.", "type": "server_error", "param": None,
                                                "code": "failed"}})  # fmt: skip
        assert good.result()[0] == 200


def test_a_sparse_cache_serves_what_generate_writes(folder: NestedFolder) -> None:
    with running(folder, cache="int8:0.5") as server:
        ids = [1 + at % 300 for at in range(150)]
        texts = [
            server.post("completions", prompt=ids[:length], max_tokens=20, temperature=0) for length in (150, 90, 150)
        ]
    decoder = Decoder(folder.file, DecoderSettings(**cache_named("int8:0.5")))
    for (status, answer), length in zip(texts, (150, 90, 150), strict=True):
        pieces = write(Session(decoder), folder.text, Order(prompt=tuple(ids[:length]), most=20))
        assert status == 200
        assert answer["choices"][0]["text"] == "".join(piece.text for piece in pieces)
        decoder.seq_rm(0)


def test_errors_within_a_stream(server: Running) -> None:
    _, _, body = server.ask("POST", "/v1/completions", {"prompt": [999_999], "stream": True})
    assert b"beyond the model's 320" in body


def test_keys_and_names(folder: NestedFolder) -> None:
    with running(folder, Limits(key="clé", hosts=("127.0.0.1", "localhost"))) as server:
        assert server.ask("GET", "/v1/models", Authorization="Bearer clé".encode().decode("latin-1"))[0] == 200
    with running(folder, Limits(key="secret", hosts=("127.0.0.1", "localhost"))) as server:
        body = {"prompt": PROMPT, "max_tokens": 2}
        for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "secret"}, 200),
                                ({"Authorization": "Bearer secret"}, 200), ({"Authorization": "bearer secret"}, 200),
                                ({"Authorization": "Basic secret"}, 401),
                                ({"Authorization": "Bearer secret", "Host": "evil.example"}, 403),
                                ({"Authorization": "Bearer secret", "Host": "["}, 403)):  # fmt: skip
            assert server.ask("POST", "/v1/completions", body, **headers)[0] == status
        assert server.ask("GET", "/health")[0] == 200
        assert server.ask("GET", "/v1/models")[0] == 401


def test_a_request_that_never_comes_is_left(folder: NestedFolder) -> None:
    with running(folder, Limits(patience=0.3)) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 50\r\n\r\n{")  # fmt: skip
        assert b" 408 " in connection.recv(1000)
        connection.close()


@pytest.mark.peer
def test_the_official_client(folder: NestedFolder) -> None:
    openai = pytest.importorskip("openai", reason="the client openai is not installed")
    with running(folder, Limits(key="secret")) as server:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret", max_retries=0)
        messages = [{"role": "user", "content": PROMPT}]
        wanted = server.alone(server.folder.text.chat(messages), 12)
        given: dict[str, Any] = {"model": "toy", "max_tokens": 12, "temperature": 0}
        answer = client.chat.completions.create(messages=messages, **given)
        assert answer.choices[0].message.content == wanted
        assert answer.usage.completion_tokens == 12
        chunks = list(client.chat.completions.create(messages=messages, stream=True, **given))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
        assert chunks[-1].choices[0].finish_reason == "length"
        text = client.completions.create(prompt=PROMPT, **given).choices[0].text
        assert text == server.alone(server.folder.text.encode(PROMPT), 12)
        assert [model.id for model in client.models.list()] == ["toy"]
        assert client.models.retrieve("toy").id == "toy"
        with pytest.raises(openai.BadRequestError, match="does not do n"):
            client.completions.create(prompt=PROMPT, n=2, **given)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt=PROMPT)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with client.completions.create(prompt=PROMPT, stream=True, **{**given, "max_tokens": 200}) as cut:
            next(iter(cut))
        server.wait_idle()
        client.close()


def test_the_command(folder: NestedFolder, tmp_path: Path) -> None:
    """A process of its own: says where it listens, imports no torch, and ends when it is told to."""
    import os
    import signal
    import subprocess
    import sys

    code = (
        "import sys; from lissome.cli.main import main;"
        f"code = main(['serve', {str(folder.path)!r}, '--port', '0']);"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'torch'; sys.exit(code)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={**os.environ, "LISSOME_PROGRESS": "plain"}
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    port = int(line.split("/v1")[0].rpartition(":")[2])
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read())["model"] == "toy"
    connection.close()
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 143, rest
    assert "torch" not in rest
