"""Write docs/reference/cli.md from the commands: ``python tools/cli_reference.py > docs/reference/cli.md``."""

from __future__ import annotations

import sys
from typing import Any

import typer

from lissome.cli._failures import EXIT_CODES
from lissome.cli.main import application, command_files

_INTRODUCTION = """\
# Command line

This page is written by `python tools/cli_reference.py` from the commands themselves; a test compares the two.

Standard output carries the answer and nothing else; progress and errors go to standard error. Every command that
answers takes `--json` ([keys](json.md)). An error is one line that says what to do; `--debug` adds the traceback.
`LISSOME_PROGRESS` chooses how progress is shown (`bar`, `plain` or `off`), `LISSOME_CACHE` where fetched files lie.
"""


def markdown() -> str:
    """Return the page."""
    names = [info.name for info in command_files()]
    group: Any = typer.main.get_command(application(names))
    parts = [_INTRODUCTION, "## lissome\n", _options(group), "### Exit codes\n", _exit_codes()]
    for name in names:
        command = group.commands[name]
        parts += [
            f"## lissome {name}\n",
            f"{command.help}\n",
            f"```\n{_usage(name, command)}\n```\n",
            _options(command),
        ]
    return "\n".join(parts)


def _usage(name: str, command: Any) -> str:
    words = [f"lissome {name}"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            words.append(parameter.metavar if parameter.required else f"[{parameter.metavar}]")
        else:
            word = parameter.opts[0] if parameter.is_flag else f"{parameter.opts[0]} {parameter.metavar}"
            words.append((word if parameter.required else f"[{word}]") + ("…" if parameter.multiple else ""))
    return " ".join(words)


def _options(command: Any) -> str:
    lines = ["| option | meaning | default |", "| --- | --- | --- |"]
    for parameter in command.params:
        argument = parameter.param_type_name == "argument"
        name = parameter.metavar if argument else " ".join(filter(None, (parameter.opts[0], parameter.metavar)))
        default = "" if parameter.default in (None, False, "") else f"`{parameter.default}`"
        default = "required" if parameter.required else default
        lines.append(f"| `{name}` | {parameter.help} | {default} |".replace("<", "&lt;"))
    return "\n".join(lines) + "\n"


def _exit_codes() -> str:
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    return f"| code | meaning |\n| --- | --- |\n| 0 | done |\n{rows}"


if __name__ == "__main__":
    sys.stdout.write(markdown())
