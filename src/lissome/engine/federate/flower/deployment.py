"""A federation as processes: a SuperLink, a SuperNode for each client, and the run that ``flwr run`` starts.

Everything listens on one machine here; the same commands on many machines make the same federation. A SuperNode that
dies is started again. What the processes say goes to files in the folder of the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lissome.core.config import to_toml
from lissome.core.errors import ConfigError, FederationError, MissingExtraError
from lissome.core.events import EventStream, Followed
from lissome.core.files import write_text
from lissome.engine.federate.flower.ports import HERE, Reach, check_address, free_port, listens, port_at, speaks_tls
from lissome.engine.federate.flower.processes import Processes
from lissome.engine.federate.flower.simulation import QUIET

NAME = "lissome"
"""Name of the connection in Flower's configuration."""

_EVERYWHERE = "0.0.0.0"  # noqa: S104  compared with, not bound to
_STARTING = 120.0  # seconds that a SuperLink may take to listen: Python on a busy machine is slow to import
_ENDING_AT_ONCE = 10.0  # seconds of life below which a node is not started again
_RESTARTS = 20  # of one SuperNode
_FORGOTTEN = 120.0  # seconds after which a SuperLink surely knows that a node which was killed is gone
_POLL = 0.5
_UNKNOWN = "Failed to activate SuperNode"  # what Flower says of a key that it does not let in
_UNPLAIN = re.compile(r'["\\\x00-\x1f\x7f]')  # in a node's TOML, where Flower looks for the next quote


@dataclass(frozen=True, kw_only=True)
class Security:
    """Files that make connections private and nodes known; see `lissome.engine.federate.flower.credentials`.

    Attributes:
        authority: Certificate that clients check the server's against.
        certificate: The server's certificate.
        key: The server's private key.
    """

    authority: Path
    certificate: Path
    key: Path

    def resolved(self) -> Security:
        """Return the same files by absolute paths, which mean the same to processes that run elsewhere.

        Raises:
            ConfigError: When one is not there.
        """
        found = Security(**{name: path.resolve() for name, path in vars(self).items()})
        for file in vars(found).values():
            if not file.is_file():
                raise ConfigError(f"{file} is not there; make it with: lissome federate credentials {file.parent}")
        return found


@dataclass(frozen=True, kw_only=True)
class Node:
    """One client's process.

    Attributes:
        name: Of the client.
        config: Its configuration, which the ClientApp reads.
        key: Private key by which it is known; None without node authentication.
        public: The public key that belongs to it, which the server must know.
    """

    name: str
    config: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    key: Path | None = None
    public: Path | None = None


class Deployment:
    """Processes of one federation on this machine.

    Args:
        folder: For logs, Flower's state and its configuration.
        app: The app folder that is run.
        nodes: The clients that run on this machine.
        known: Public keys of those on other machines, by name.
        security: TLS and node authentication; None connects in the clear, which is for one machine alone.
        host: Where the SuperLink listens.
        port: Its port; 0 takes a free one.
    """

    def __init__(
        self,
        folder: Path,
        app: Path,
        nodes: Sequence[Node],
        *,
        known: Mapping[str, Path] | None = None,
        security: Security | None = None,
        host: str = HERE,
        port: int = 0,
    ) -> None:
        self.folder, self._app, self._nodes = folder.resolve(), app.resolve(), tuple(nodes)
        self._known = {**(known or {}), **{one.name: one.public for one in nodes if one.public is not None}}
        self._security, self._host = security.resolved() if security is not None else None, host
        if security is None and host != HERE:
            raise ConfigError(f"a server at {host} is reached by others; give it credentials (TLS and keys of nodes).")
        self.port = port_at(host, port)
        self._processes = Processes(self.folder, environment(self._home))
        self._restarts: dict[str, int] = {}

    @property
    def address(self) -> str:
        """Where the SuperLink is reached from this machine."""
        return f"{HERE if self._host == _EVERYWHERE else self._host}:{self.port}"

    def run(self, events: EventStream | None = None, log: Path | None = None) -> None:
        """Start everything, wait until the run has ended, and end everything.

        Args:
            events: Where progress is reported.
            log: File that the server's app writes its events to; they are handed on.

        Raises:
            FederationError: When a process cannot be started, or the run fails; names the log.
            MissingExtraError: When Flower is not installed.
        """
        stream, followed = events or EventStream(), Followed(log) if log is not None else None
        with self.started(stream):
            command = [tool("flwr"), "run", str(self._app), NAME, "--stream"]
            process, running = self._processes.start("run", command), True
            while running:
                running = process.poll() is None
                if followed is not None:
                    followed.hand_on(stream)
                if running:
                    self._mend(stream)
                    time.sleep(_POLL)
            if process.returncode:
                raise FederationError(f"the run failed: {self._processes.said('run')}.")

    @contextlib.contextmanager
    def started(self, events: EventStream | None = None) -> Iterator[None]:
        """Keep the SuperLink and all SuperNodes running inside the block."""
        self._processes.stop_former()
        try:
            self.start_superlink()
            self.configure()
            for name, key in self._known.items():
                self.register(name, key)
            for number, node in enumerate(self._nodes):
                self.start_node(node, number)
            yield
        finally:
            self.stop()

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it listens.

        It starts from nothing: what a federation needs is in our own checkpoints, and a SuperLink that finds the run of
        a former one in its database would start that again.

        Raises:
            ConfigError: When somebody else listens at its port.
            FederationError: When it ends, or does not listen in time.
        """
        if listens(self._host, self.port):
            raise ConfigError(f"port {self.port} of {self._host} is taken; give another one with --port, or 0 for any.")
        for file in self.folder.glob("superlink.db*"):
            file.unlink()
        command = [
            tool("flower-superlink"), "--host", self._host, "--port", str(self.port),
            "--database", str(self.folder / "superlink.db"), "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        if self._security is None:
            command.append("--insecure")
        else:
            command += [
                "--ssl-ca-certfile", str(self._security.authority), "--ssl-certfile", str(self._security.certificate),
                "--ssl-keyfile", str(self._security.key), "--enable-supernode-auth",
            ]  # fmt: skip
        process = self._processes.start("superlink", command)
        limit = time.monotonic() + _STARTING
        while not listens(self._host, self.port):
            if process.poll() is not None or time.monotonic() > limit:
                raise FederationError(f"the SuperLink did not start: {self._processes.said('superlink')}.")
            time.sleep(_POLL)

    def configure(self) -> None:
        """Tell the command ``flwr`` where the SuperLink is."""
        connection: dict[str, object] = {"address": self.address}
        if self._security is None:
            connection["insecure"] = True
        else:
            connection["root-certificates"] = str(self._security.authority)
        write_text(self._home / "config.toml", to_toml({"superlink": {"default": NAME, NAME: connection}}))

    def register(self, name: str, key: Path) -> None:
        """Make a client's public key known to the SuperLink, where nodes are known by keys.

        Raises:
            FederationError: When the SuperLink refuses.
        """
        if self._security is None:
            return
        done = subprocess.run(
            [tool("flwr"), "supernode", "register", str(key.resolve()), NAME, "--name", name],
            env=environment(self._home), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode and "already" not in done.stdout + done.stderr:
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise FederationError(f"{name} could not be registered: {' '.join(reason)}")

    def start_node(self, node: Node, number: int) -> subprocess.Popen[bytes]:
        """Start the SuperNode of a client."""
        authority = self._security.authority if self._security is not None else None
        return self._processes.start(_node_name(number), node_command(node, self.address, authority))

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return a process: ``"superlink"``, ``"run"``, or ``"node-3"``."""
        return self._processes[name]

    def stop(self) -> None:
        """End all processes, and those that they have started."""
        self._processes.stop()

    def _mend(self, events: EventStream) -> None:
        """Start SuperNodes again that have died."""
        for number, node in enumerate(self._nodes):
            name = _node_name(number)
            if self._processes[name].poll() is not None and self._restarts.get(name, 0) < _RESTARTS:
                self._restarts[name] = self._restarts.get(name, 0) + 1
                events.message(f"{node.name} died and is started again")
                self.start_node(node, number)
        if self._processes["superlink"].poll() is not None:
            raise FederationError(f"the SuperLink died: {self._processes.said('superlink')}; the same again continues.")

    @property
    def _home(self) -> Path:
        return self.folder / "flwr"


def node_command(node: Node, address: str, authority: Path | None) -> list[str]:
    """Return the command that starts the SuperNode of a client.

    Args:
        node: The client.
        address: Where its SuperLink listens, ``host:port``.
        authority: Certificate to check that against; None connects in the clear.
    """
    command = [
        tool("flower-supernode"), "--superlink", address, "--host", HERE, "--port", str(free_port(HERE)),
        "--node-config", " ".join(f"{key}={_quoted(value)}" for key, value in node.config.items()),
    ]  # fmt: skip
    if authority is None:
        return [*command, "--insecure"]
    command += ["--root-certificates", str(authority.resolve())]
    return [*command, "--auth-supernode-private-key", str(node.key.resolve())] if node.key is not None else command


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes, whose own files go to `home`.

    They start each other by name, so that this environment's commands come first, though it may not be activated.
    """
    path = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), os.environ.get("PATH"))))
    return {**os.environ, **QUIET, "PATH": path, "FLWR_HOME": str(home.resolve()), "NO_COLOR": "1"}


def tool(name: str) -> str:
    """Return the path of one of Flower's commands, of this environment before others.

    Raises:
        MissingExtraError: When it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise MissingExtraError(f"the command {name} is not here. Install it with: pip install 'lissome[federate]'")
    return found


def _node_name(number: int) -> str:
    return f"node-{number}"


def _quoted(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{_UNPLAIN.sub(_escaped, value)}"' if isinstance(value, str) else str(value)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def join(
    node: Node,
    address: str,
    authority: Path | None,
    folder: Path,
    events: EventStream | None = None,
    *,
    log: Path | None = None,
) -> None:
    """Take part in a federation of another machine until interrupted; what dies is started again.

    Who comes before the server, or comes back to `folder`, is patient: a SuperLink that was just started does not know
    its nodes yet, and it counts on a node that was killed for about a minute, and lets no second one in meanwhile.

    Args:
        node: Who we are.
        address: Where the server's SuperLink listens, ``host:port``.
        authority: Certificate to check that against; None connects in the clear.
        folder: For logs and Flower's own files.
        events: Where it is said that the node was started, and what it is asked.
        log: File that the client's app writes its events to; they are handed on.

    Raises:
        ConfigError: When the server wants credentials, and there are none.
        FederationError: When the SuperNode ends again and again; names the log.
        MissingExtraError: When Flower is not installed.
    """
    place = check_address(address)
    stream, processes = events or EventStream(), Processes(folder, environment(folder / "flwr"))
    followed, patient, told = Followed(log) if log is not None else None, processes.log("node").exists(), ""
    reach = Reach(address, stream.message)
    processes.stop_former()
    try:
        for start in range(_RESTARTS):
            stream.message(f"{node.name} joins {address}" if not start else f"{node.name} is started again")
            begun, met = time.monotonic(), False
            if not listens(*place):
                patient = True
                stream.message(f"nothing listens at {address} yet; it is tried again until something does")
            process = processes.start("node", node_command(node, address, authority))
            while process.poll() is None:
                time.sleep(_POLL)
                if followed is not None:
                    followed.hand_on(stream)
                reach.look()
                if not met and authority is None and (met := listens(*place)) and speaks_tls(*place):
                    raise ConfigError(f"{address} lets in who has credentials alone; give their folder: --credentials.")
            brief = time.monotonic() - begun < _ENDING_AT_ONCE
            if brief and not patient:
                break  # it will end again: a key that is not known, a certificate that is another's
            patient = True
            if told != (told := _why_out(processes)):
                stream.message(f"{node.name} {'was not let in' if brief else 'ended'}: {told}; it is tried again")
            time.sleep(_FORGOTTEN / _RESTARTS * brief)
    finally:
        processes.stop()
    raise FederationError(f"the node ended: {_why_out(processes)}.")


def _why_out(processes: Processes) -> str:
    """Why a node ended, in plain words where it is that the server does not let its key in."""
    said = processes.said("node")
    if _UNKNOWN not in said:
        return said
    return (
        "the server does not know its key, or still counts on a process of it that was killed; whoever runs the server "
        "makes a folder for it (lissome federate credentials DIR --client NAME) and starts the server again; see "
        f"{processes.log('node')}"
    )
