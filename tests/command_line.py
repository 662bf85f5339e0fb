"""`theworld …` as a script sees it: exit code, stdout and stderr; in the test's process, or as a process of its own."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from theworld.pipeline.cli.main import main

from .patience import patience


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def err(self) -> str:
        return self.stderr.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def theworld(*words: object, cwd: Path | None = None) -> Done:
    """Run the entry point with these words in this process, with streams as a script's pipes are.

    What it takes a process to see is for `theworld_process`: imports, signals, what compiled code prints.
    """
    stdout, stderr = io.BytesIO(), io.BytesIO()
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["theworld", *map(os.fsdecode, map(_word, words))]))
        out = stack.enter_context(redirect_stdout(io.TextIOWrapper(stdout, "utf-8", write_through=True)))
        err = io.TextIOWrapper(stderr, "utf-8", errors="backslashreplace", write_through=True)
        stack.enter_context(redirect_stderr(err))
        if cwd is not None:
            stack.enter_context(chdir(cwd))
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        out.flush()
        err.flush()
        return Done(code if isinstance(code, int) else 1, stdout.getvalue(), stderr.getvalue())


def theworld_process(
    *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, limit_s: float = 120
) -> Done:
    """Run the same command as a process of its own."""
    command = [sys.executable, "-m", "theworld.pipeline.cli", *map(_word, words)]
    done = subprocess.run(command, capture_output=True, cwd=cwd, env=env, timeout=patience(limit_s))
    return Done(done.returncode, done.stdout, done.stderr)


def _word(word: object) -> str | bytes:
    return word if isinstance(word, bytes) else str(word)
