"""Names, questions, recipes and errors of strangers leave by few doors, which make them safe."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import Done, theworld, theworld_process
from tests.commands_page import walk
from tests.miniatures.store import TINY, create
from tests.patience import patience
from theworld.pipeline.messages import command
from theworld.precompute.job.watching.events import Events

ROOT = Path(__file__).parents[3]
ROOMS = ("pipeline", "precompute", "train")
BASH = shutil.which("bash") or ""
needs_bash = pytest.mark.skipif(not BASH, reason="a command is pasted into bash, which is not here")


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


# --- terminal


PRINTS = {
    "pipeline/progress.py": "the door",
    "precompute/preview/terminal.py": "pictures, of colored half blocks",
    "pipeline/files/hub/chat_renderer.py": "a process of its own; its parent reads one JSON value",
}


def test_text_leaves_by_one_door() -> None:
    found: list[str] = []
    for file, tree in trees():
        for node in ast.walk(tree):
            name = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                fixed = all(isinstance(a, ast.Constant) or ast.unparse(a).startswith("json.dumps(") for a in node.args)
                found += [] if fixed else [f"{file}:{node.lineno}: print"]
            elif name in ("typer.echo", "typer.secho", "click.echo", "sys.stdout.write", "sys.stderr.write", "Console"):
                found += [] if file in PRINTS else [f"{file}:{node.lineno}: {name}"]
    assert found == [], "print_lines, print_json, print_result and print_error of pipeline/progress.py escape text"


EVIL = "\x1b]0;OWNED\x07\x1b[2J\u202e"


def require_safe(done: Done, code: int) -> str:
    text = (done.stdout + done.stderr).decode()
    assert done.code == code, text
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(text), text
    return text


def test_a_strangers_questions_do_not_command_the_terminal(tmp_path: Path) -> None:
    question = {"image": "a.png", "question": f"where{EVIL}?", "answer": "left", "choices": ["left", f"r{EVIL}"]}
    lines = [{**question, "id": f"q{n}{EVIL}", "type": f"t{EVIL}", "split": f"s{EVIL}"} for n in range(2)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert r"t\x1b]0;OWNED\x07\x1b[2J\u202e" in require_safe(theworld("questions", "q.jsonl", cwd=tmp_path), 3)
    require_safe(theworld("questions", "q.jsonl", "--json", cwd=tmp_path), 3)


def test_the_prompt_of_a_strangers_store_does_not_either(tmp_path: Path) -> None:
    stores = [create(tmp_path / name, recipe=TINY.model_copy(update={"prompt": f"{name}{EVIL}"})) for name in "ab"]
    said = require_safe(theworld("cache", "explain", *(store.path for store in stores), cwd=tmp_path), 0)
    assert r"a\x1b]0;OWNED" in said


def test_a_file_name_that_a_pattern_typed_as_a_flag_is_shown_escaped(tmp_path: Path) -> None:
    assert "OWNED" in require_safe(theworld_process(f"--x{EVIL}", cwd=tmp_path), 2)
    for words in (("cache", "info", f"--x{EVIL}"), ("worlds", f"a{EVIL}"), (f"a{EVIL}",)):
        assert "OWNED" in require_safe(theworld(*words, cwd=tmp_path), 2)


def test_a_mistake_of_ours_that_quotes_a_stranger_is_shown_escaped(tmp_path: Path) -> None:
    broken = f"""
import importlib
it = importlib.import_module("theworld.pipeline.cli.main")
def fail(): raise RuntimeError({EVIL!r})
it.app = fail
it.main()
"""
    done = subprocess.run([sys.executable, "-c", broken], cwd=tmp_path, capture_output=True, check=False)
    text = require_safe(Done(done.returncode, done.stdout, done.stderr), 1)
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("RuntimeError: \\x1b]0;OWNED\\x07\\x1b[2J\\u202e\n")


# --- offered commands


_NAMES = "|".join(sorted({word for name, _ in walk() for word in name.split()[1:2]}))
_OPEN_COMMAND = re.compile(rf"theworld ({_NAMES}) [^`;.]*$")
"""The end of a text that is inside a command."""
_QUOTES = ("command", "quote", "shlex.quote")


def _is_quoted(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in _QUOTES


def unquoted(tree: ast.Module) -> Iterator[ast.expr]:
    """Values that are put into a command as they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            before = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    before += part.value
                elif isinstance(part, ast.FormattedValue):
                    if _OPEN_COMMAND.search(before) and not _is_quoted(part.value):
                        yield part.value
                    before += "VALUE"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            parts = [part.value for part in ast.walk(node.left) if isinstance(part, ast.Constant)]
            text = "".join(part for part in parts if isinstance(part, str))
            if _OPEN_COMMAND.search(text) and not isinstance(node.right, ast.Constant) and not _is_quoted(node.right):
                yield node.right


def test_the_search_for_unquoted_values_finds_them() -> None:
    bad = [
        *("f'theworld cache info {a}'", "f'run `theworld ask {quote(b)} {a}`'"),
        *("'theworld ask ' + a", "'theworld ask %s' % a"),
    ]
    good = [
        *("f'`theworld train` wrote {a}'", "f'{command(a)} and {a}'"),
        *("f'theworld ask {quote(a)}'", "f'theworld is {a}'"),
    ]
    assert [len(list(unquoted(ast.parse(line)))) for line in bad] == [1] * len(bad)
    assert [len(list(unquoted(ast.parse(line)))) for line in good] == [0] * len(good)


def test_whatever_is_put_into_a_command_is_quoted() -> None:
    found = [f"{file}:{value.lineno}: {ast.unparse(value)}" for file, tree in trees() for value in unquoted(tree)]
    assert found == [], "command(...) of pipeline/messages.py makes a command that can be pasted"


HOSTILE = [
    *("s$(touch OWNED)", "a b", "-rf", ";touch OWNED", "a\ntouch OWNED", "it's", "`touch OWNED`"),
    *("x\u202e", "!!", "~", "é\udce9"),
]
STUB = 'theworld() { printf "%s\\0" "$@"; }; '


def paste(line: str, folder: Path) -> list[str]:
    """The words that a shell hands to theworld."""
    done = subprocess.run([BASH, "-c", STUB + line], cwd=folder, capture_output=True, timeout=patience(20), check=True)
    assert done.stderr == b""
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@needs_bash
@pytest.mark.parametrize("name", HOSTILE)
def test_a_pasted_command_does_what_it_says_and_nothing_else(name: str, tmp_path: Path) -> None:
    words = paste(command("cache", "info", Path(name), "--json"), tmp_path)
    assert words == ["cache", "info", f"./{name}" if name.startswith("-") else name, "--json"]
    assert list(tmp_path.iterdir()) == []


@needs_bash
@pytest.mark.parametrize("name", [HOSTILE[0], "-rf", "a\ntouch OWNED", "`touch OWNED`"])
def test_the_commands_that_messages_offer_survive_the_terminal_and_a_paste(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    store = create(folder)
    (store.path / "commits" / "0.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    path = store.path.relative_to(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / name).mkdir()
    offered = []
    for words in (["cache", "verify", f"./{path}"], ["cache", "info", f"./{path}"], ["cache", "info", f"empty/{name}"]):
        done = theworld(*words, cwd=tmp_path)
        text = (done.stdout + done.stderr).decode()
        offered += re.findall(r"`(theworld (?:cache repair|precompute IMAGES)[^`]*)`", text)
    assert len(offered) == 4  # verify offers its own, too
    shutil.rmtree(tmp_path / "empty")
    for line in offered:
        words = paste(line, tmp_path)
        assert words[-1] == "--apply" or words[:-1] == ["precompute", "IMAGES", "--cache"]
        assert any(name in word for word in words)
    assert sorted(tmp_path.rglob("*")) == before


# --- events


def test_an_event_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path)
    name = f"a\nb\r\u2028\u2029\x85\x1c\ud800{EVIL}"
    events.write("failure", source=name, reason="unreadable", message=f"{name}: broken", attempts=1)
    events.write("failed", message=name)
    events.close()
    text = path.read_bytes()
    assert text.isascii()
    lines = text.decode().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["failure", "failed"]
    assert json.loads(lines[0])["source"] == name
