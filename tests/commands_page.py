"""docs/commands.md, every command with its options, made from the command line itself.

    python -m tests.commands_page > docs/commands.md

writes it anew; tests/behaviour/project/test_conventions.py fails where the page is another than this makes.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from theworld.pipeline.cli.main import app

HEAD = """# All commands

What `theworld COMMAND --help` says, on one page, made from the command line (`python -m tests.commands_page`). What
exit codes, `--json`, `--quiet` and the environment mean: [conventions.md](conventions.md).
"""
_EVERYWHERE = ("help", "install_completion", "show_completion")


def walk(command: Any = None, words: tuple[str, ...] = ("theworld",)) -> Iterator[tuple[str, Any]]:
    """Every command as it is typed, with what Typer made of it; a group before what is in it."""
    command = command or get_command(app)
    yield " ".join(words), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*words, name))


def commands_page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *(line for name, command in walk() for line in _section(name, command))])


def _section(name: str, command: Any) -> Iterator[str]:
    yield from (f"## {name}", "", inspect.cleandoc(command.help or ""), "")
    inner = [f"[{word}](#{name.replace(' ', '-')}-{word})" for word in getattr(command, "commands", {})]
    if inner:
        yield from (" · ".join(inner), "")
    context = command.make_context(name, [], resilient_parsing=True)
    panels: dict[str, list[str]] = defaultdict(list)
    for param in command.params:
        if param.name not in _EVERYWHERE:
            panels[getattr(param, "rich_help_panel", None) or ""].append(_row(param, context))
    if command.epilog:
        example, page = (line.split(": ", 1)[1] for line in command.epilog.split("\n\n"))
        target = page.removeprefix("docs/") if page.startswith("docs/") else f"../{page}"
        yield from (f"Example: `{example}` ([{Path(page).name}]({target}))", "")
    for panel, rows in sorted(panels.items(), key=lambda item: item[0] != ""):  # those of no panel first, as in --help
        yield from (f"**{panel}**", "") if panel else ()
        yield from ("| option | what it does |", "|---|---|", *rows, "")


def _row(param: Any, context: Any) -> str:
    name, _ = param.get_help_record(context)
    if param.param_type_name == "argument":
        name = param.name.upper() + (" …" if param.nargs != 1 else "")
    text = " ".join((param.help or "").split())
    default = param.get_default(context)
    if param.required:
        text += " (required)"
    elif getattr(param, "secondary_opts", ()) and "the default" not in text:
        text += f" (default: {(param.opts if default else param.secondary_opts)[0]})"
    elif not isinstance(default, bool) and default not in (None, ()) and "(default: " not in text:
        text += f" (default: {default})"
    return f"| `{name.replace(' range>', '>')}` | {text.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print(commands_page(), end="")
