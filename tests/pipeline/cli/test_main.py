from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from contextlib import chdir
from pathlib import Path

import pytest

from tests.command_line import theworld, theworld_process
from tests.miniatures.store import create
from tests.patience import patience
from theworld.pipeline.config import load_config
from theworld.pipeline.errors import ConfigError, TheWorldError
from theworld.precompute.job.config import PrecomputeConfig

ROOT = Path(__file__).parents[3]


def test_help_loads_neither_torch_nor_ray_nor_anything_else_that_takes_seconds() -> None:
    code = (
        "import sys; from theworld.pipeline.cli.main import app\n"
        "try: app(['precompute', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers', 'numpy', 'zarr'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done.stderr
    assert "--steps" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["train", "nowhere", "--questions", "q.jsonl"],
        ["train", "--nowhere"],
        ["study", "nowhere", "--questions", "q.jsonl"],
        ["evaluate", "nowhere"],
        ["ask", "nowhere", "a.png", "why?"],
        ["precompute", "nowhere"],
        ["precompute", ".", "--size", "225x225", "--world", "nowhere"],
        ["precompute", ".", "--steps", "nowhere"],
        ["questions", "nowhere"],
    ],
    ids=" ".join,
)
def test_a_place_that_holds_nothing_and_a_wrong_flag_are_said_before_seconds_of_loading(args: list[str]) -> None:
    code = (
        "import sys; from theworld.pipeline.cli.main import main\n"
        f"sys.argv = ['theworld', *{args}]\n"
        "try: main()\n"
        "finally: print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60))
    assert "225x225. The nearest is 224x224" in done.stderr if "225x225" in args else "nowhere" in done.stderr
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/*.toml")), ids=lambda path: path.name)
def test_every_shipped_config_loads_and_says_what_it_costs(file: Path) -> None:
    from theworld.train.config import TrainConfig

    assert file.read_text().startswith("# ")
    assert "theworld " in file.read_text()
    tables = tomllib.loads(file.read_text())
    if "precompute" in tables:
        load_config(PrecomputeConfig, "precompute", file, {})
    if "train" in tables:
        load_config(TrainConfig, "train", file, {"store": Path("s"), "questions": Path("q")})


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[precompute]\nsteps = 4\nseed = 7\n[train]\nstore = 's'\n")
    config = load_config(PrecomputeConfig, "precompute", file, {"steps": 2, "seed": None})
    assert (config.steps, config.seed, config.stride) == (2, 7, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[precompute]\nstep = 4\n", ["c.toml", "'step'", "steps", "stride"]),
        ("steps = 4\n", ["c.toml", "'steps'", "[precompute]"]),
        ("[precompute]\nsteps = 'many'\n", ["c.toml", "steps", "many"]),
        ("[precompute]\nsize = '224'\n", ["HEIGHTxWIDTH"]),
        ("[precompute\n", ["c.toml", "not valid TOML"]),
        ("[precompute]\nseed = " + "9" * 5000, ["c.toml", "not valid TOML", "digits"]),
        ("[precompute]\nseed = " + "[" * 5000, ["c.toml", "not valid TOML", "recursion"]),
        ("\ufeff[precompute]\nsteps = 'many'\n", ["c.toml", "steps", "many"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(PrecomputeConfig, "precompute", file, {})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_error_is_one_message_on_stderr_with_exit_code_two_and_nothing_written(tmp_path: Path) -> None:
    for args, words in (
        (["precompute", "nowhere"], ["nowhere"]),
        (["evaluate"], ["theworld train --cache"]),
        (["ask", "run", "x.png", "what?"], ["run"]),
        (["precompute", "--config", "absent.toml"], ["absent.toml"]),
    ):
        done = theworld(*args, cwd=tmp_path)
        assert done.code == 2, done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        assert done.err.startswith("error: ")
        assert all(word in done.err for word in words), done.err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_message_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = theworld("scenes", "file/out", "--train", "2", "--test", "0", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: file/out/images cannot be used: Not a directory. Name another place")
    assert "Traceback" not in done.err


def test_a_disk_that_is_full_is_one_message_that_names_the_file(tmp_path: Path) -> None:
    line = f'ulimit -f 0; exec "{sys.executable}" -m theworld.pipeline.cli scenes out --train 1 --test 0'
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: out/"), done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_working_folder_that_was_removed_is_one_message_too(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with chdir(gone):
        gone.rmdir()
        done = theworld("precompute", "photos")
    assert done.code == 2
    assert "working folder cannot be used" in done.err


def test_what_is_not_a_store_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    done = theworld("train", "nothing", "--questions", "q.jsonl", cwd=tmp_path)
    assert done.code == 10
    assert "theworld precompute" in done.err
    for command in (["train", "--cache"], ["questions"], ["study", "--arms", "text"]):  # before its questions
        done = theworld(*command, cwd=tmp_path)
        assert done.code == 10, done.err
        assert "error: latents does not exist" in done.err


def test_a_run_is_not_a_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("theworld.json", "adapter_config.json"):
        (tmp_path / "run" / name).write_text("{}\n")
    done = theworld("cache", "info", "run", cwd=tmp_path)
    assert (done.code, done.out) == (10, "")
    assert done.err.startswith("error: run is a run that `theworld train` wrote, not a store.")


def test_a_store_or_a_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    store = create(tmp_path / "latents")
    done = theworld("evaluate", store.path, cwd=tmp_path)
    assert done.err.startswith(f"error: {store.path} is a store of latents, not a run. Train a run on it first: ")
    assert done.err.endswith(" --questions QUESTIONS.jsonl\n")
    for name in ("first", "second"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for file in ("theworld.json", "metrics.json"):
            (tmp_path / "mine" / name / file).write_text("{}\n")
    for typed in ("mine", "mine/thrid"):
        done = theworld("ask", typed, "a.png", "why?", cwd=tmp_path)
        assert done.err.startswith(f"error: {typed} is not a run folder: ")
        assert "such as mine/first, mine/second" in done.err


def test_questions_about_images_of_one_s_own_have_to_be_named(tmp_path: Path) -> None:
    store = create(tmp_path / "latents")
    for place in ("latents", str(store.path)):
        done = theworld("train", place, cwd=tmp_path)
        assert done.code == 2
        assert "--questions FILE" in done.err


def test_the_error_tree_at_the_head_of_the_file_is_the_tree() -> None:
    from theworld.pipeline import errors

    drawn = {line.split("──")[1].split()[0].strip() for line in errors.__doc__.splitlines() if "──" in line}
    real: set[str] = set()
    todo = [TheWorldError]
    while todo:
        for child in todo.pop().__subclasses__():
            if not child.__name__.startswith("_"):  # such a one never leaves its file
                real.add(child.__name__)
            todo.append(child)
    assert drawn == real


def test_json_and_version() -> None:
    assert theworld_process("--version").out.startswith("theworld 0.")
    done = theworld("precompute", "--dry-run", "--json", str(ROOT / "absent"))
    assert done.code == 2
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.out)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", "--micro-batch 1"), ("evaluate", "--batch-size 4"), ("precompute", "fewer --workers"),
        ("demo", "a device with more memory"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), MemoryError()])
def test_a_command_that_runs_out_of_memory_says_what_makes_it_fit(
    command: str, words: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise error

    main = importlib.import_module("theworld.pipeline.cli.main")
    monkeypatch.setattr(main, "app", full)
    monkeypatch.setattr("sys.argv", ["theworld", command])
    with pytest.raises(SystemExit) as ended:
        main.main()
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert line.startswith("error: out of memory: ")
    assert words in line
