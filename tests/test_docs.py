"""What the pages and the README show is run: Python on a toy model, command lines against the real options."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

import lissome
from lissome.cli.main import application, command_files
from lissome.testing.networks import network
from lissome.testing.tokenizers import toy_tokenizer
from lissome.testing.toys import toy_model, toy_module

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<why><!-- not run: [^>]+ -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page: Path, *languages: str) -> list[str]:
    """Code blocks in these languages; a comment ``<!-- not run: reason -->`` above one leaves it out."""
    found = BLOCK.finditer(page.read_text())
    return [match["code"] for match in found if match["language"] in languages and not match["why"]]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every example runs as written, with a toy of 30 layers in the place of whatever is loaded."""
    monkeypatch.chdir(tmp_path)
    toy = replace(toy_model(num_hidden_layers=30), tokenizer=toy_tokenizer())
    monkeypatch.setitem(vars(lissome), "load", lambda target, **options: toy)
    (tmp_path / "notes.txt").write_text("\n\n".join(f"Note {number}. " + "Some words. " * 50 for number in range(60)))
    for code in blocks(page, "python"):
        names: dict[str, Any] = {
            "my_transformers_model": toy_module("llama"),
            "my_network": network("resnet"),
            "model": toy,
        }
        exec(compile(code, name_of(page), "exec"), names)
        promised = [line.removeprefix("# ") for line in code.splitlines() if re.match(r"# .* (NOT )?met: ", line)]
        assert capsys.readouterr().out.splitlines()[: len(promised)] == promised


def command_lines(page: Path) -> list[str]:
    lines = [
        line.partition("  #")[0].strip() for code in blocks(page, "", "sh", "console") for line in code.splitlines()
    ]
    return [line for line in lines if re.match(r"lissome [a-z]+( |$)", line) and "[" not in line]


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=name_of)
def test_command_lines_are_understood(page: Path) -> None:
    """The command exists and takes these options and arguments; nothing is run."""
    group: Any = typer.main.get_command(application([info.name for info in command_files()]))
    for line in command_lines(page):
        _, name, *words = shlex.split(line)
        assert name in group.commands, line
        group.commands[name].make_context(name, words, resilient_parsing=False)


def test_the_build_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), re.MULTILINE))
        assert {name for pair in named for name in pair if name} <= targets, name_of(page)
