"""The folder of a training in progress, from which an interrupted training is resumed.

runs/7.partial/training.json            what is trained: `TrainingFacts`
runs/7.partial/checkpoint.safetensors   the last complete checkpoint (format: training/checkpoint.py)
runs/7.partial/tracker.json             the tracker's run that logs it, and how far: training/trackers.py
runs/7.partial/run/                     the finished run, just before it becomes runs/7 by one rename
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...pipeline.errors import ConfigError, Interrupted, RunError
from ...pipeline.files.atomic import is_unfinished, replace, sync_folder, sync_tree
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.lock import exclusive_lock
from ...pipeline.files.plain import read_file
from ...pipeline.files.rights import follow_umask
from ...pipeline.messages import list_problems
from ..config import TrainConfig

PARTIAL = ".partial"
FACTS, CHECKPOINT, RUN, TRACKED = "training.json", "checkpoint.safetensors", "run", "tensorboard"
TRACKER = "tracker.json"

MAY_CHANGE = frozenset(
    {"store", "questions", "images", "lm", "futures", "device", "attention", "micro_batch", "gradient_checkpointing"}
    | {"memory", "checkpoint_every", "checkpoint_minutes", "max_bad_steps", "report_to", "out"}
    | {"local_cache", "local_cache_size"}
)
"""Settings that may change when a training is resumed: paths (their content is compared) and how it is run. All others
decide what is learned."""


class TrainingFacts(BaseModel):
    """The content of training.json: all that decides the result of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    config: dict[str, Any]
    numbered: bool
    """Whether the run takes the next free number, not a name."""
    recipe_id: str
    images_sha256: str
    """SHA-256 of which latents each question reads, for the store may grow."""
    shards_sha256: str | None = None
    """SHA-256 of the shard of each row, where rows are shuffled in blocks of shards."""
    questions_sha256: str
    lm: str
    lm_content: str | None = None
    """As in `LMFacts`."""
    versions: dict[str, str]
    started: str
    """UTC time, for information only."""


class PartialRun:
    """The folder of a training in progress. Only the first process of a training writes in it."""

    def __init__(self, path: Path, facts: TrainingFacts) -> None:
        self.path = path
        self.facts = facts

    @property
    def checkpoint(self) -> Path:
        """Path of the last complete checkpoint, if there is one."""
        return self.path / CHECKPOINT

    @property
    def tracked(self) -> Path:
        """Folder for TensorBoard's files; it moves into the run."""
        return self.path / TRACKED

    @property
    def tracker(self) -> Path:
        """Path of tracker.json."""
        return self.path / TRACKER

    @property
    def command(self) -> str:
        """The command that resumes this training."""
        return f"theworld train --resume {shlex.quote(str(self.path))}"

    @property
    def is_whole(self) -> bool:
        """Whether the finished run is complete and only its rename is missing: theworld.json is written last."""
        return (self.path / RUN / "theworld.json").is_file()

    def new_run(self) -> Path:
        """An empty folder for the finished run."""
        folder = self.path / RUN
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed while it finished
        folder.mkdir()
        if self.tracked.is_dir():
            self.tracked.rename(folder / TRACKED)
        return folder

    def finish(self) -> Path:
        """Rename the finished run to its name in one step, and remove the folder of the training.

        Returns:
            The run folder.
        Raises:
            RunError: the name is taken by now; everything stays where it is.
        """
        folder, parent = self.path / RUN, self.path.parent
        sync_tree(folder)
        target = run_of(self.path)
        while True:
            try:
                folder.rename(target)  # a folder with files in it is never replaced by a rename
                break
            except OSError as error:
                if not (self.facts.numbered and target.exists()):
                    why = f"cannot name the finished run {target}: {error.strerror}"
                    raise RunError(f"{why}. It is {folder}: move it where you want it") from error
            target = next(_free_names(parent))
        sync_folder(parent)
        with suppress(OSError):  # what is left takes room, and harms nothing
            for name in (CHECKPOINT, TRACKER, FACTS):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()  # files of somebody else, a log for example, stay
        return target


def run_of(path: Path) -> Path:
    """The path of the run that a partial folder becomes."""
    return path.with_name(path.name.removesuffix(PARTIAL))


def partial_of(run: Path) -> Path:
    """The partial folder of a run's path; a partial folder's path stays as it is."""
    return run if run.name.endswith(PARTIAL) else run.with_name(run.name + PARTIAL)


def is_partial(path: Path) -> bool:
    """Whether a training of this name can be resumed."""
    return (partial_of(path) / FACTS).is_file()


def find_partial(where: Path | None = None) -> Path:
    """The folder of the unfinished training of this name, or of the only one under `runs/`.

    Raises:
        RunError: there is none, or there are several to choose from.
    """
    if where is not None:
        if not is_partial(where):
            advice = "Start it without --resume"
            if where.exists():
                advice = f"{where} is finished: there is nothing to resume"
            raise RunError(f"there is no unfinished training {partial_of(where)}. {advice}")
        return partial_of(where)
    partials = sorted(path for path in Path("runs").glob(f"*{PARTIAL}") if is_partial(path))
    if len(partials) != 1:
        several = ""
        if partials:
            folder = shlex.quote(str(partials[0]))
            several = f"{', '.join(map(str, partials))} are unfinished: name one, as in --resume {folder}"
        raise RunError(several or "there is no unfinished training under runs/. Start one without --resume")
    return partials[0]


def read_facts(path: Path) -> TrainingFacts:
    """Read the training.json of a training in progress.

    Raises:
        RunError: it cannot be read, or is not valid.
    """
    try:
        return TrainingFacts.model_validate_json(read_file(path / FACTS, MAX_CONFIG_BYTES, within=path))
    except (OSError, ValueError) as error:
        why = list_problems(error) if isinstance(error, OSError | ValidationError) else error
        raise RunError(
            f"{path / FACTS} cannot be read as a training in progress ({why}). It was changed, or "
            f"written by another version; remove {path} and train again"
        ) from error


def resumed_config(path: Path, changes: Mapping[str, Any]) -> TrainConfig:
    """The settings of an interrupted training, with the changes that are allowed.

    Args:
        changes: settings by name; None and an unchanged value change nothing.
    Raises:
        ConfigError: a setting differs that decides what is learned; names each with both values.
    """
    earlier = {"holdout": 0.0, "adapter_dtype": "float32", "shuffle": "full"}  # of versions without these settings
    saved = {**earlier, **read_facts(path).config}
    try:
        wanted = TrainConfig.model_validate({**_given(saved), **{k: v for k, v in changes.items() if v is not None}})
    except ValidationError as error:
        raise ConfigError(
            f"cannot resume {path}: {list_problems(error, fields=TrainConfig.model_fields)}. Settings that "
            "you leave out stay as they were"
        ) from error
    now = wanted.model_dump(mode="json")
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    before = {**defaults, **saved}  # a setting that was added since had its default
    differ = [name for name in now if name not in MAY_CHANGE and now[name] != before[name]]
    if differ:
        differences = "; ".join(f"{name} {before[name]!r} there, {now[name]!r} here" for name in differ)
        raise ConfigError(
            f"{path} was begun with other settings: {differences}. Leave them out to resume with the old ones, or "
            "start a new training without --resume"
        )
    return wanted


def _given(saved: dict[str, Any]) -> dict[str, Any]:
    """Drop `train_steps` if `epochs` is set: only one of them may be given."""
    return {k: v for k, v in saved.items() if not (k == "train_steps" and saved.get("epochs") is not None)}


@contextmanager
def open_partial(
    facts: TrainingFacts, out: Path | None, *, resume: Path | None, writes: bool, say: Callable[[str], None]
) -> Iterator[PartialRun]:
    """The folder of a training while it runs. If the training ends early, it is kept only if it can be resumed.

    Args:
        out: path of the run; None takes the next free number under `runs/`.
        resume: the folder of a training to resume.
        writes: False on all processes but the first.
        say: shows a line to the user.
    Raises:
        RunError: `out` is taken, or the resumed training used other latents, questions or weights.
        StoreLockedError: another process trains in that folder.
    """
    if resume is not None:
        path = partial_of(resume)
        begun = read_facts(path)
        _require_same(path, begun, facts)
        others = [f"{name} {was}" for name, was in begun.versions.items() if facts.versions.get(name) != was]
        if others:
            say(f"{path} was begun with {', '.join(others)}: the results will not be the same bit by bit")
        if begun.shards_sha256 != facts.shards_sha256:
            say(
                f"the latents lie in other shards than when {path} was begun (`cache compact`, or another copy of the "
                "store), so the rest of its epoch has another order: some rows may come twice in it, some not at all"
            )
    elif not writes:
        yield PartialRun(partial_of(out or Path("runs") / "0"), facts)
        return
    else:
        path = _begin(facts, out)
    unfinished = PartialRun(path, read_facts(path))
    if not writes:
        yield unfinished
        return
    with exclusive_lock(path / FACTS, busy=f"another process trains in {path}; wait for it, or stop it"):
        for left in path.iterdir():
            if left.is_file() and is_unfinished(left.name):  # of a killed process
                left.unlink()
        if (path / RUN / TRACKED).is_dir() and not unfinished.tracked.exists():  # it ended while it finished
            (path / RUN / TRACKED).rename(unfinished.tracked)
        try:
            yield unfinished
        except BaseException as error:
            if isinstance(error, Interrupted):  # its message says how to resume
                raise
            if unfinished.checkpoint.exists():
                say(f"{path} holds the last checkpoint; `{unfinished.command}` resumes from it")
            elif resume is None and not unfinished.is_whole:
                shutil.rmtree(path, ignore_errors=True)
            raise


def require_free(run: Path, *, begins: bool) -> None:
    """Refuse the path of an existing run or training in progress, before anything is loaded.

    Args:
        begins: whether this process makes the partial folder. For the others it may exist already.
    Raises:
        RunError: the path is taken.
    """
    if run.exists():
        raise RunError(f"{run} exists already; runs are never overwritten. Choose another --out, or remove it")
    if begins and partial_of(run).exists():
        raise _taken(partial_of(run))


def _taken(partial: Path) -> RunError:
    return RunError(
        f"{partial} is there already: a training of that name is in progress, or was interrupted. "
        f"`theworld train --resume {shlex.quote(str(partial))}` resumes it; else choose another --out, "
        "or remove it"
    )


def _begin(facts: TrainingFacts, out: Path | None) -> Path:
    """Make a new partial folder with training.json in it, in one step."""
    parent = out.parent if out is not None else Path("runs")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".run-", dir=parent))
    try:
        replace(folder, folder / FACTS, (facts.model_dump_json(indent=2) + "\n").encode())
        follow_umask(folder)
        for name in [out] if out is not None else _free_names(parent):
            try:
                return folder.rename(partial_of(name))  # a folder with files in it is never replaced by a rename
            except OSError as error:
                if out is not None or not partial_of(name).exists():
                    raise _taken(partial_of(name)) from error
        raise AssertionError("numbers do not end")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_names(parent: Path) -> Iterator[Path]:
    number = 1
    while True:
        name = parent / str(number)
        if not name.exists() and not partial_of(name).exists():
            yield name
        number += 1


def _require_same(path: Path, saved: TrainingFacts, current: TrainingFacts) -> None:
    content_by_field = {
        "recipe_id": "latents of the recipe",
        "images_sha256": "latents with the digest",
        "questions_sha256": "questions with the SHA-256",
        "lm": "the language model",
    }
    for name, content in content_by_field.items():
        before, now = getattr(saved, name), getattr(current, name)
        if before != now:
            raise RunError(
                f"{path} was begun on {content} {before}, now there is {now}. Name the same ones, or start a new "
                "training without --resume"
            )
