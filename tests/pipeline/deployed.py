"""What tests of deployments share: commands as processes of their own, what they have started, and what is secret."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from lissome.core.files import read_json, sha256_file
from tests.pipeline.federated import WORDS


def weights(out: Path) -> str:
    return sha256_file(out / "model.safetensors")


def eventually(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.05)


def command(*words: object, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start ``lissome federate`` with these words; what it says goes to the end of a file."""
    line = [sys.executable, "-m", "lissome", "federate", *map(str, words)]
    with log.open("ab") if log is not None else contextlib.nullcontext(subprocess.DEVNULL) as said:
        return subprocess.Popen(line, stdout=said, stderr=said)


def running(flower: Path) -> dict[str, int]:
    """Numbers of the processes that were started from a folder, by name."""
    record = flower / "processes.json"
    return {name: one[0] for name, one in read_json(record)["started"].items()} if record.exists() else {}


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def apps(flower: Path, tool: str = "") -> list[psutil.Process]:
    """Processes that were started from a folder, by whomever there; of one of Flower's commands, or all."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.environ().get("LISSOME_PROCESSES_OF") == str(flower.absolute())
            if ours and any(word.endswith(tool) for word in process.cmdline()):
                found.append(process)
    return found


def round_of(out: Path) -> int:
    """The last round that the server has written down; the first checkpoint is the start, before all rounds."""
    made = (out / ".run" / "server" / "checkpoint").glob("[0-9]*")
    return max((int(one.name) for one in made if one.name.isdigit()), default=0) - 1


def secret_keys(keys: Path) -> list[bytes]:
    """Private keys of all, line by line."""
    files = [keys / "ca.key", keys / "server.key", *sorted(keys.glob("clients/*/key"))]
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    found = [line for line in lines if line and not line.startswith(b"-----")]
    assert len(found) >= 3 * len(files) >= 3 * 4
    return found


def secret_rows() -> list[bytes]:
    """Texts of the rows."""
    return [f'"{word} {word}'.encode() for words in WORDS.values() for word in words]


def tokens(clients: Path) -> set[bytes]:
    """What clients are known again by."""
    return {file.read_bytes().strip() for file in clients.glob("*/token")}


def contents(folder: Path, but: str) -> Iterator[tuple[Path, bytes]]:
    """Files of a folder with their bytes, apart from those below folders of one name."""
    for file in folder.rglob("*"):
        if file.is_file() and but not in file.relative_to(folder).parts:
            yield file, file.read_bytes()


def alter(certificate: Path, part: str) -> None:
    """Change bytes of a certificate after it was signed: of a name that it holds for, or of the signature itself."""
    content = bytearray(ssl.PEM_cert_to_DER_cert(certificate.read_text()))
    place = content.index(b"localhost") if part == "name" else len(content) - 1
    content[place] ^= 1
    certificate.write_text(ssl.DER_cert_to_PEM_cert(bytes(content)))
