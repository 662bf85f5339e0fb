"""Names, questions, recipes and errors of strangers leave by few doors, which make them safe."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..miniatures.store import TINY, create
from ..patience import patience

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "precompute", "train")
THEWORLD = [sys.executable, "-m", "theworld.pipeline.cli"]


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


# --- terminal


PRINTS = {
    "pipeline/progress.py": "the door",
    "precompute/preview/terminal.py": "pictures, of colored half blocks",
    "train/language/chat_renderer.py": "a process of its own; its parent reads one JSON value",
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


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*THEWORLD, *words], cwd=folder, capture_output=True, timeout=patience(120), check=False)


def require_safe(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == code, text
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(text), text
    return text


def test_a_strangers_questions_do_not_command_the_terminal(tmp_path: Path) -> None:
    question = {"image": "a.png", "question": f"where{EVIL}?", "answer": "left", "choices": ["left", f"r{EVIL}"]}
    lines = [{**question, "id": f"q{n}{EVIL}", "type": f"t{EVIL}", "split": f"s{EVIL}"} for n in range(2)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert r"t\x1b]0;OWNED\x07\x1b[2J\u202e" in require_safe(run(tmp_path, "questions", "q.jsonl"), 3)
    require_safe(run(tmp_path, "questions", "q.jsonl", "--json"), 3)


def test_the_prompt_of_a_strangers_store_does_not_either(tmp_path: Path) -> None:
    stores = [create(tmp_path / name, recipe=TINY.model_copy(update={"prompt": f"{name}{EVIL}"})) for name in "ab"]
    said = require_safe(run(tmp_path, "cache", "explain", *(store.path for store in stores)), 0)
    assert r"a\x1b]0;OWNED" in said


def test_a_file_name_that_a_pattern_typed_as_a_flag_is_shown_escaped(tmp_path: Path) -> None:
    for words in ((f"--x{EVIL}",), ("cache", "info", f"--x{EVIL}"), ("worlds", f"a{EVIL}"), (f"a{EVIL}",)):
        assert "OWNED" in require_safe(run(tmp_path, *words), 2)


def test_a_mistake_of_ours_that_quotes_a_stranger_is_shown_escaped(tmp_path: Path) -> None:
    broken = f"""
import importlib
it = importlib.import_module("theworld.pipeline.cli.main")
def fail(): raise RuntimeError({EVIL!r})
it.app = fail
it.main()
"""
    done = subprocess.run([sys.executable, "-c", broken], cwd=tmp_path, capture_output=True, check=False)
    text = require_safe(done, 1)
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("RuntimeError: \\x1b]0;OWNED\\x07\\x1b[2J\\u202e\n")
