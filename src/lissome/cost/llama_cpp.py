"""Runs a GGUF file in llama.cpp: its tokens, its logits, and how fast it is beside another file.

Needs the extra `llama` (the package ``llama-cpp-python``). Settings are llama.cpp's own defaults except for threads
and context, so that the figures are those a user of llama.cpp gets on this machine's CPU.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ArtifactError, ConfigError, LissomeError
from lissome.core.files import atomic_file
from lissome.core.metrics import Metric
from lissome.core.optional import optional_import
from lissome.ops.stats import ratio_of_medians

T = TypeVar("T")

_LINES: deque[str] = deque(maxlen=50)  # what llama.cpp said last, for error messages
_THREAD = "llama.cpp"
_WARNING = 3  # llama.cpp's levels: debug 1, info 2, warning 3, error 4, continued line 5


@cache
def _library() -> Any:
    """Import the library and keep what it would print; the callback must outlive every open file."""
    library = optional_import("llama_cpp.llama_cpp", extra="llama")
    library.llama_log_set(_listener(library), ctypes.c_void_p(0))
    return library


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=_THREAD)


os.register_at_fork(after_in_child=_thread.cache_clear)


def alone(work: Callable[[], T]) -> T:
    """Do this in the one thread where only llama.cpp computes.

    It shapes AMX tiles once in a thread's life: where torch or another library uses them too, its next prompt would end
    the process. Helpers of OpenMP belong to the thread that calls them, so they are llama.cpp's own as well. Reading a
    file belongs here too: helpers of two threads are more than there are cores, and would no longer wait but sleep.
    """
    if threading.current_thread().name.startswith(_THREAD):
        return work()
    return _thread().submit(work).result()


@cache
def _listener(library: Any) -> Any:
    def listen(level: int, text: bytes, _: Any) -> None:
        if level >= _WARNING:
            _LINES.append(text.decode("utf-8", "replace").strip())

    return library.llama_log_callback(listen)


def _refusal(path: Path) -> ArtifactError:
    lines = [line for line in _LINES if "error" in line] or list(_LINES) or ["it gives no reason"]
    return ArtifactError(f"llama.cpp cannot open {path}: {lines[-1]}")


class LlamaCpp:
    """An open GGUF file; use it in a ``with`` statement, it holds memory outside Python.

    Args:
        path: The file.
        context: Tokens that fit into the cache.
        threads: Threads for prompts and for single tokens; default all cores of this process.
        vocabulary_only: Read the tokenizer and no weights; then only `tokenize` and `chat_template` work.

    Raises:
        MissingExtraError: When ``llama-cpp-python`` is not installed.
        ArtifactError: When llama.cpp refuses the file; carries its reason.
    """

    def __init__(
        self, path: Path, *, context: int = 512, threads: int | None = None, vocabulary_only: bool = False
    ) -> None:
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist.")
        _LINES.clear()
        self._lib = lib = _library()
        self._model: Any = None
        self._context: Any = None
        settings = lib.llama_model_default_params()
        settings.vocab_only = vocabulary_only
        settings.n_gpu_layers = 0
        self._model = alone(partial(lib.llama_model_load_from_file, os.fsencode(path), settings))
        if not self._model:
            raise _refusal(path)
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self.tokens = int(lib.llama_vocab_n_tokens(self._vocabulary))
        self.room = context
        if not vocabulary_only:
            self._open_context(path, context, threads or len(os.sched_getaffinity(0)))

    def _open_context(self, path: Path, context: int, threads: int) -> None:
        settings = self._lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        self._context = alone(partial(self._lib.llama_init_from_model, self._model, settings))
        if not self._context:
            self.close()
            raise _refusal(path)
        self._memory = self._lib.llama_get_memory(self._context)

    def close(self) -> None:
        """Give the memory back."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def chat_template(self) -> str | None:
        """The chat template in the file."""
        text = self._lib.llama_model_chat_template(self._model, None)
        return text.decode("utf-8") if text else None

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return token ids of a text.

        Args:
            text: The text.
            special: Put BOS and EOS where the file says so, and read names of special tokens as those tokens.
        """
        data = text.encode("utf-8")
        ids = (ctypes.c_int32 * (len(data) + 2))()
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), special, special)
        if count < 0:
            raise ArtifactError(f"llama.cpp gave {-count} tokens for a text of {len(data)} bytes.")
        return list(ids[:count])

    def reset(self) -> None:
        """Forget all tokens."""
        self._lib.llama_memory_clear(self._memory, True)

    def feed(self, ids: Sequence[int], start: int, *, every: bool = False) -> NDArray[np.float32]:
        """Run tokens at positions `start` …, which must follow what was fed before.

        Args:
            ids: Token ids.
            start: Position of the first one.
            every: Return the logits at every token, not only behind the last.

        Returns:
            Logits, float32[len(ids) or 1, V].
        """
        if start + len(ids) > self.room:
            raise ConfigError(f"{start + len(ids)} tokens do not fit into a context of {self.room}.")
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for index, token in enumerate(ids):
                batch.token[index], batch.pos[index] = token, start + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = every or index == len(ids) - 1
            code = alone(partial(self._lib.llama_decode, self._context, batch))
            if code:
                raise ArtifactError(f"llama.cpp failed on {len(ids)} tokens at position {start} (code {code}).")
        finally:
            self._lib.llama_batch_free(batch)
        rows = len(ids) if every else 1
        raw = np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (rows * self.tokens,))
        return raw.reshape(rows, self.tokens).copy()

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits at every token of a fresh sequence, float32[len(ids), V]."""
        self.reset()
        return self.feed(ids, 0, every=True)

    def time_request(self, prompt: Sequence[int], new: Sequence[int]) -> tuple[float, float]:
        """Return the seconds for a prompt and for single tokens after it.

        The new tokens are given, not chosen, so that every model and every repeat does the same work.
        """
        return alone(partial(self._time_request, prompt, new))

    def _time_request(self, prompt: Sequence[int], new: Sequence[int]) -> tuple[float, float]:
        self.reset()
        begin = time.perf_counter()
        self.feed(prompt, 0)
        middle = time.perf_counter()
        for step, token in enumerate(new):
            self.feed([token], len(prompt) + step)
        return middle - begin, time.perf_counter() - middle


def quantise(source: Path, target: Path, kind: str, *, threads: int | None = None) -> Path:
    """Let llama.cpp write a GGUF file in another type, as its own tool does: with K types and finer heads.

    Args:
        source: A GGUF file, best one of F32 or F16.
        target: The new file, whole or absent.
        kind: A type by its name there, e.g. ``"Q4_K_M"`` or ``"IQ4_NL"``.
        threads: Threads; default all cores of this process.

    Raises:
        MissingExtraError: When ``llama-cpp-python`` is not installed.
        ConfigError: When llama.cpp has no such type.
        ArtifactError: When it refuses the file; carries its reason.
    """
    lib = _library()
    number = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}", None)
    if number is None:
        raise ConfigError(f"llama.cpp has no type {kind!r:.40}; common ones are Q4_0, Q4_K_M, IQ4_NL and Q8_0.")
    settings = lib.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = number, threads or len(os.sched_getaffinity(0))
    _LINES.clear()
    with atomic_file(target) as part:
        if lib.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(settings)):
            raise _refusal(source)
    return target


def features() -> str:
    """Return llama.cpp's own line on what of this CPU it uses; a build for other machines is slower and says so."""
    return str(_library().llama_print_system_info().decode("utf-8", "replace").strip())


def time_files(
    files: Mapping[str, Path], *, prompt: int = 128, new: int = 64, repeats: int = 5, threads: int | None = None
) -> dict[str, tuple[Metric, ...]]:
    """Time GGUF files side by side, in turns, in a process of its own.

    Libraries that share a process share the helpers of OpenMP: where those are more than the cores, all of them sleep
    where they would wait, which takes several times as long.

    Args:
        files: Files by the name they shall have in the result.
        prompt: Tokens of the prompt (default 128, as for the budget term `latency`).
        new: Tokens after it (default 64, likewise).
        repeats: Rounds after one that does not count; five are the least from which an interval says something.
        threads: Threads; default all cores of this process.

    Returns:
        For each file `prefill` and `decode` in tokens/s, `latency` in s, each the median of the rounds with a 95 %
        bootstrap interval, and `disk` in bytes.

    Raises:
        MissingExtraError: When ``llama-cpp-python`` is not installed.
        ArtifactError: When llama.cpp refuses a file, or does not live to the end.
        ConfigError: When a count is not positive.
    """
    if min(prompt, new, repeats) < 1:
        raise ConfigError(f"prompt, new and repeats must be at least 1, got {prompt}, {new} and {repeats}.")
    _library()
    work = {"prompt": prompt, "new": new, "repeats": repeats, "threads": threads}
    asked = json.dumps({"files": {name: str(path.absolute()) for name, path in files.items()}, **work})
    fast = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}  # no thread may sleep
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, env=fast)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ArtifactError(f"llama.cpp ended with code {done.returncode} while it timed {', '.join(files)}: {said}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise ArtifactError(answer["error"])
    return {name: _metrics(answer["rounds"][name], prompt, new, path.stat().st_size) for name, path in files.items()}


def _serve() -> None:
    """Time what standard input asks for; the other end is `time_files`."""
    asked = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"rounds": _rounds(**asked)}
    except LissomeError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


def _rounds(
    files: Mapping[str, str], prompt: int, new: int, repeats: int, threads: int | None
) -> dict[str, list[tuple[float, float]]]:
    opened: dict[str, LlamaCpp] = {}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    try:
        for name, path in files.items():
            opened[name] = LlamaCpp(Path(path), context=prompt + new, threads=threads)
        for turn in range(repeats + 1):
            for name, model in opened.items():
                ids = [(1 + 7 * step) % model.tokens for step in range(prompt + new)]
                seconds = model.time_request(ids[:prompt], ids[prompt:])
                if turn:
                    rounds[name].append(seconds)
    finally:
        for model in opened.values():
            model.close()
    return rounds


def _metrics(rounds: Sequence[tuple[float, float]], prompt: int, new: int, disk: int) -> tuple[Metric, ...]:
    seconds = np.asarray(rounds)
    return (
        _median("prefill", prompt / seconds[:, 0]),
        _median("decode", new / seconds[:, 1]),
        _median("latency", seconds.sum(axis=1)),
        Metric(name="disk", value=float(disk), unit="bytes", provenance="counted"),
    )


def _median(name: str, values: NDArray[np.float64]) -> Metric:
    spread = ratio_of_medians(values, np.ones(len(values)))
    speed = name != "latency"
    return Metric(
        name=name,
        value=spread.value,
        unit="tokens/s" if speed else "s",
        better="higher" if speed else "lower",
        low=spread.low,
        high=spread.high,
        n=len(values),
    )


if __name__ == "__main__":
    _serve()
