"""The command line as a whole: what there is, what happens to typos and failures, what stays unimported."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from lissome.cli import main as cli
from lissome.cli._failures import failure
from lissome.core.errors import ArtifactError, BudgetUnmetError, ConfigError, MemoryLimitError, NumericsError
from tools.cli_reference import markdown

ROOT = Path(__file__).parents[2]
FROZEN = {
    "assets": {"ACTION", "NAME", "--json"},
    "bench": {"TARGET", "--against", "--save-table", "--json"},
    "eval": {"TARGET", "--against", "--data", "--text", "--tasks", "--limit", "--json"},
    "explain": {"ARTIFACT", "--step", "--extract", "--out", "--json"},
    "export": {"TARGET", "--to", "--type", "--pad", "--out", "--json"},
    "federate": {
        "WHAT", "TARGET", "--out", "--backend", "--dry-run", "--credentials", "--client", "--host", "--port", "--data",
        "--state", "--set", "--json",
    },
    "fit": {
        "MODEL", "--method", "--recipe", "--budget", "--data", "--set", "--seed", "--max-memory", "--out", "--json",
    },
    "generate": {"TARGET", "--prompt", "--max-new-tokens", "--schedule", "--cache", "--json"},
    "inspect": {"MODEL", "--device", "--json"},
    "methods": {"NAME", "--json"},
    "plan": {
        "MODEL", "--method", "--recipe", "--budget", "--data", "--set", "--seed", "--max-memory", "--device", "--json",
    },
    "report": {"ARTIFACT", "--out", "--json"},
    "serve": {"ARTIFACT", "--host", "--port", "--key", "--context", "--parallel", "--queue", "--schedule", "--cache"},
    "supernet": {"MODEL", "--method", "--data", "--set", "--seed", "--out", "--json"},
    "extract": {"ARTIFACT", "--budget", "--point", "--out", "--json"},
    "search": {
        "S", "--budget", "--objective", "--trials", "--sampler", "--data", "--latency", "--device", "--check",
        "--correct", "--workers", "--study", "--set", "--seed", "--out", "--json",
    },
}  # fmt: skip
"""Methods add settings (``--set``), never flags: whoever changes this changes what every script relies on."""


def _names(command):
    arguments = {item.metavar for item in command.params if item.param_type_name == "argument"}
    return arguments | {item.opts[0] for item in command.params if item.param_type_name == "option"}


def test_the_commands_and_their_options_are_frozen():
    names = [info.name for info in cli.command_files()]
    group = typer.main.get_command(cli.application(names))
    assert {name: _names(group.commands[name]) for name in names} == FROZEN
    assert _names(group) == {"--events", "--tensorboard", "--debug", "--version"}


def test_the_reference_page_is_what_the_commands_say():
    assert (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8") == markdown(), (
        "run: python tools/cli_reference.py > docs/reference/cli.md"
    )


def test_help_says_what_each_file_says(run):
    result = run("--help")
    assert result.code == 0
    for info in cli.command_files():
        assert info.summary.split(",")[0] in " ".join(result.out.replace("│", "").split())


def test_without_words_it_prints_the_help(run):
    assert run().out == run("--help").out


def test_summary_and_help_agree():
    # the list shows the file's docstring, `COMMAND --help` the function's: one must begin like the other
    names = [info.name for info in cli.command_files()]
    group = typer.main.get_command(cli.application(names))
    for info in cli.command_files():
        assert group.commands[info.name].help.startswith(info.summary.rstrip(".")), info.name


def _modules_after(words: list[str]) -> set[str]:
    code = (
        "import sys, json\nfrom lissome.cli.main import main\ncode = main(json.loads(sys.argv[1]))\n"
        "print(json.dumps([code, sorted(sys.modules)]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True, env=environment, check=True
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize("words", [["--help"], ["methods"], ["assets"], ["fit", "--help"], ["--version"]])
def test_light_commands_import_no_heavy_library(words):
    assert not {"torch", "transformers", "numpy", "plotly"} & _modules_after(words)


def test_only_the_command_that_is_called_is_imported():
    modules = _modules_after(["assets"])
    assert "lissome.cli.assets" in modules
    assert "lissome.cli.fit" not in modules


def test_python_dash_m_runs_it():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "lissome", "--version"], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("lissome ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fti"], "did you mean 'fit'?"),
        (["fit", "--bugdet", "x"], "did you mean '--budget'?"),
        (["fit", "--events", "x"], "stands before the command"),
        (["methods", "multiprunner"], "did you mean 'multipruner'?"),
        (["assets", "fetch", "smolm2-135m"], "did you mean 'smollm2-135m'?"),
        (["assets", "fecth"], "did you mean 'fetch'?"),
        (["assets", "fetch"], "lissome assets fetch NAME"),
        (["eval"], "TARGET"),
        (["eval", "x", "--text", "a", "--tasks", "piqa"], "--text and --tasks cannot stand together"),
        (["fit", "--method", "a", "--recipe", "b"], "--method and --recipe cannot stand together"),
        (["fit", "--seed", "x"], "--seed"),
        (["fit", "--max-memory", "lots"], "'lots' is not an amount of memory"),
        (["fit", "--max-memory", "50%"], "'50%' is not an amount of memory"),
        (["explain", "x", "--extract", "3"], "--out DIR"),
        (["inspect"], "either a MODEL or --device"),
        (["generate", "x", "--prompt"], "--prompt"),
    ],
)
def test_a_misuse_is_one_line_that_helps(run, words, expected):
    result = run(*words)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert expected in result.err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (ConfigError("a\nb"), 2, "error: a b"),
        (BudgetUnmetError("params"), 3, "error: params"),
        (NumericsError("nan"), 4, "error: nan"),
        (MemoryLimitError("big"), 5, "error: big"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "disk full while writing /x/y"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "disk full"),
        (OSError(errno.EFBIG, "File too large", "/x/y"), 1, "/x/y is larger than its file system, or ulimit -f"),
        (RuntimeError("I/O error: File too large (os error 27)"), 1, "a file is larger than its file system"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), 1, "a.txt: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: Permission denied; check"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
        (ValueError("odd\nthing"), 1, "unexpected ValueError: odd thing; run again with --debug and report it"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_failure_is_one_line_and_a_code(run, calls, error, code, expected, monkeypatch):
    if isinstance(error, BrokenPipeError):
        monkeypatch.setattr(os, "dup2", lambda *_: None)  # it would close the output of the test run
        monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    calls.answers["generate"] = error
    result = run("generate", "x", "--prompt", "y")
    assert result.code == code
    assert expected in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert sum(line.startswith("error: ") for line in result.err.splitlines()) == bool(expected)


def test_a_request_to_end_unwinds(run, monkeypatch):
    from lissome import pipeline

    unwound = []

    def slow(*_args, **_options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            unwound.append(True)

    monkeypatch.setattr(pipeline, "generate", slow)
    before = signal.getsignal(signal.SIGTERM)
    result = run("generate", "x", "--prompt", "y")
    assert (result.code, unwound) == (143, [True])
    assert result.err == "error: terminated.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_debug_shows_the_traceback_wherever_it_stands(run, calls):
    calls.answers["generate"] = ValueError("odd")
    for words in (("--debug", "generate", "x", "--prompt", "y"), ("generate", "x", "--prompt", "y", "--debug")):
        result = run(*words)
        assert result.code == 1
        assert "Traceback" in result.err
        assert "unexpected ValueError: odd" in result.err


@pytest.mark.parametrize(("words", "continues"), [(("fit",), True), (("eval", "x"), False)])
def test_what_continues_says_so_when_it_is_interrupted(run, calls, words, continues):
    calls.answers |= {"fit": KeyboardInterrupt(), "evaluate": KeyboardInterrupt()}
    result = run(*words)
    assert result.code == 130
    assert ("the same command continues" in result.err) == continues


def test_debug_after_two_dashes_is_a_value(run, calls):
    run("generate", "--prompt", "y", "--", "--debug")
    assert calls.seen["generate"][0][0] == "--debug"


def test_a_full_disk_behind_another_error_is_still_named():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/a/b")
        except OSError as cause:
            raise ValueError("could not save") from cause
    except ValueError as error:
        line, code = failure(error)
    assert line.startswith("disk full while writing /a/b")
    assert code == 1


def test_a_closed_output_is_no_failure_to_report():
    command = f"{sys.executable} -m lissome methods >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_failure_to_report():
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "lissome", "assets"], stdout=write, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


def test_a_full_disk_is_the_machine_whoever_words_it():
    error = ArtifactError("cannot write a checkpoint of step 2; make room there.")
    assert failure(error) == (str(error), 2)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failure(error) == (str(error), 1)
