"""Log a training to TensorBoard, W&B or trackio, with the same names in each.

A training is one run in the tracker, however often it was interrupted and resumed, and each update is logged once. The
last update that the tracker holds is asked of the tracker if it knows, else read from `tracker.json` in the training's
folder; later points are logged again from the loss curve in the checkpoint. If a tracker fails, one warning is printed
and the training goes on.

transformers' callbacks are not used: they begin a second run at every resume (W&B), join runs of one name (trackio),
and print to stdout. Nor are accelerate's trackers, which know nothing of a resume.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from ...pipeline.credentials import hide_passwords
from ...pipeline.errors import ConfigError
from ...pipeline.files.atomic import replace
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.messages import install_extra
from ...pipeline.progress import Progress
from ..config import TrainConfig
from ..runs.partial import PartialRun, run_of

NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "epoch": "train/epoch",
    "eval_loss": "eval/loss",
    "eval_accuracy": "eval/accuracy",
}
"""Name in the training's log -> name in every tracker."""

PROJECT = "theworld"


_MODULES = {"tensorboard": "torch.utils.tensorboard"}  # where not called as the package

_INSTALL = {
    "tensorboard": install_extra("tracking"),
    "wandb": "pip install wandb",
    # its releases up to 0.43 say Pillow < 13, and work with 13; before 13, Pillow's JPEG decoder has known holes
    "trackio": "pip install trackio, and then pip install 'pillow>=13', which it puts an older one in place of",
}


@dataclass(frozen=True, slots=True)
class Place:
    """What a tracker needs to begin or to resume a run."""

    name: str
    """Unique name of the run: trackio finds runs by it."""
    id: str
    config: Mapping[str, Any]
    resumed: bool
    """Whether this training was logged there before."""
    last_logged: int
    """The last update logged, as far as we know."""
    start: int
    """The update that training starts after."""
    folder: str
    """For the tracker's files."""


class Tracker(Protocol):
    """One tracking library. What it prints is sent to stderr by `Following`, since stdout is for results."""

    def begin(self, place: Place) -> int:
        """Begin or resume the run; returns the last update it holds."""
        ...

    def tell(self, update: int, values: Mapping[str, float]) -> None:
        """Log the values of one update; called once per update, in order."""
        ...

    def last_kept(self, last_logged: int) -> int:
        """The last update that the tracker holds if this process is killed now, after logging up to `told`."""
        ...

    def end(self, *, finished: bool) -> None:
        """Close the run for now."""
        ...


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._writer: Any = None

    def begin(self, place: Place) -> int:
        last_logged = min(place.last_logged, place.start)  # a killed process may not have written all of it
        self._writer = self._library.SummaryWriter(place.folder, purge_step=last_logged + 1 if place.resumed else None)
        self._writer.add_text("config", f"```json\n{json.dumps(place.config, indent=2)}\n```", place.start)
        return last_logged

    def tell(self, update: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, update)
        self._writer.flush()

    def last_kept(self, last_logged: int) -> int:
        return last_logged

    def end(self, *, finished: bool) -> None:  # noqa: ARG002
        self._writer.close()


class WandB:
    """Weights & Biases, online or offline, by its own settings and environment variables."""

    def __init__(self, library: Any) -> None:
        self._wandb = library
        self._run: Any = None
        self._owns_run = True
        self._last_kept = 0
        self._unsure: deque[tuple[float, int]] = deque()

    def begin(self, place: Place) -> int:
        self._owns_run = self._wandb.run is None  # else the caller's own, of a sweep for instance
        self._run = self._wandb.run or self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", place.name),
            id=os.environ.get("WANDB_RUN_ID", place.id),
            resume="allow",
        )
        self._run.config.update(dict(place.config), allow_val_change=True)
        # offline it does not know what it has; `wandb sync` joins the files of one id, in the order of their beginning
        self._last_kept = self._run.starting_step - 1 if self._run.resumed else place.last_logged
        return self._last_kept

    def tell(self, update: int, values: Mapping[str, float]) -> None:
        self._unsure.append((time.time(), update))
        self._run.log(dict(values), step=update, commit=True)

    def last_kept(self, last_logged: int) -> int:  # noqa: ARG002
        """The last update in its file, which another process writes every 15 seconds; a kill may lose later ones."""
        try:
            written_at = os.stat(self._run.settings.sync_file).st_mtime  # noqa: PTH116 - a string
        except OSError:
            return self._last_kept
        while self._unsure and self._unsure[0][0] < written_at - 0.3:  # the way there takes less
            self._last_kept = self._unsure.popleft()[1]
        return self._last_kept

    def end(self, *, finished: bool) -> None:
        if self._owns_run:
            self._run.finish(exit_code=0 if finished else 1)
        if self._unsure:
            self._last_kept = self._unsure.pop()[1]
            self._unsure.clear()


class Trackio:
    """trackio: a database on this machine, a Space or a server, by its own environment variables."""

    def __init__(self, library: Any) -> None:
        self._trackio = library
        self._run: Any = None

    def begin(self, place: Place) -> int:
        self._run = self._trackio.init(
            project=PROJECT,
            name=place.name,
            config=dict(place.config),
            resume="allow",
        )
        # no public word for it; a killed process leaves up to half a second of points behind
        following = getattr(self._run, "_next_step", None)
        return place.last_logged if following is None else following - 1

    def tell(self, update: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=update)

    def last_kept(self, last_logged: int) -> int:
        return last_logged

    def end(self, *, finished: bool) -> None:  # noqa: ARG002
        self._run.finish()


_TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def require_tracker(name: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        ConfigError: it cannot be imported; names the package to install.
    """
    if name != "none":
        _import(name)


def _import(name: str) -> Any:
    try:
        with redirect_stdout(sys.stderr):
            library = importlib.import_module(name)
            if getattr(library, "__file__", None) is None:  # a folder of that name, such as W&B leaves where it was run
                raise ModuleNotFoundError(f"{next(iter(library.__path__))} is a folder of that name")
            return importlib.import_module(_MODULES.get(name, name))
    except ImportError as error:
        raise ConfigError(
            f"report_to = {name} needs the package {name}, which cannot be imported ({error}): {_INSTALL[name]}. "
            "Or leave --report-to out: metrics.json has the loss curve in any case"
        ) from error


class Following:
    """Sends the log of a training to a tracker, update by update.

    Args:
        history: the log so far, of a resumed training.
        start: the update after which it resumes.
    Raises:
        ConfigError: the library is missing, or did not begin a run.
    """

    def __init__(
        self,
        config: TrainConfig,
        partial_run: PartialRun,
        progress: Progress,
        *,
        history: Sequence[Mapping[str, Any]] = (),
        start: int = 0,
    ) -> None:
        self._name, self._progress, self._partial_run = config.report_to, progress, partial_run
        tracker: Tracker = _TRACKERS[self._name](_import(self._name))
        self._tracker: Tracker | None = tracker
        self._entries_sent = 0
        records = _read_records(partial_run)
        record = records.get(self._name)
        self._records, resumed = records, record is not None
        if record is None:
            record = {"id": secrets.token_hex(4), "told": 0}
            record["name"] = f"{run_of(partial_run.path).name}-{record['id']}"
        self._record = record
        place = Place(
            name=record["name"],
            id=record["id"],
            config=_about(config, partial_run),
            resumed=resumed,
            last_logged=record["told"],
            start=start,
            folder=str(partial_run.tracked),
        )
        try:
            with redirect_stdout(sys.stderr):
                self._last_logged = record["told"] = tracker.begin(place)
        except Exception as error:
            reason = hide_passwords(f"{type(error).__name__}: {error}")
            raise ConfigError(
                f"report_to = {self._name}: it did not begin a run ({reason}). "
                "Put that right, or leave --report-to out: metrics.json has the loss curve in any case"
            ) from error
        self._write_record()
        self.tell(history)

    def end(self, history: Sequence[Mapping[str, Any]], *, finished: bool) -> None:
        """Log the rest, and close the run."""
        self.tell(history)
        self._try(lambda tracker: tracker.end(finished=finished))
        self._note()

    def tell(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Log what the history holds beyond the last call. It must hold all there is of its last update."""
        for update, values in _points(history[self._entries_sent :]):
            if update > self._last_logged:
                self._try(lambda tracker, update=update, values=values: tracker.tell(update, values))
                self._last_logged = update
        self._entries_sent = len(history)
        self._note()

    def _note(self) -> None:
        last_kept = self._record["told"] if self._tracker is None else self._tracker.last_kept(self._last_logged)
        if last_kept > self._record["told"]:
            self._record["told"] = last_kept
            self._write_record()

    def _write_record(self) -> None:
        path, text = self._partial_run.tracker, json.dumps({**self._records, self._name: self._record})
        with suppress(OSError):  # a full disk: if the process is killed before the next, a point is told twice
            replace(path.parent, path, text.encode())

    def _try(self, call: Any) -> None:
        if self._tracker is None:
            return
        try:
            with redirect_stdout(sys.stderr):
                call(self._tracker)
        except Exception as error:  # whatever a tracker is up to, hours of training are worth more
            self._tracker = None
            reason = hide_passwords(f"{type(error).__name__}: {error}")
            self._progress.warn(f"{self._name} follows no longer ({reason}); training goes on, metrics.json has it all")


def _points(log: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """The logged values of each update, in order."""
    points: dict[int, dict[str, float]] = {}
    for entry in log:
        values = {NAMES[name]: value for name, value in entry.items() if name in NAMES}
        points.setdefault(entry["step"], {}).update(values)
    return sorted(points.items())


def _about(config: TrainConfig, partial_run: PartialRun) -> dict[str, Any]:
    """Settings and data of a training, for a tracker's table of runs."""
    facts = partial_run.facts
    identities = {"recipe_id": facts.recipe_id, "lm_identity": facts.lm, "questions_sha256": facts.questions_sha256}
    return {**config.model_dump(mode="json"), **identities, "versions": facts.versions}


def _read_records(partial_run: PartialRun) -> dict[str, dict[str, Any]]:
    """What each tracker was told. Empty where none has followed yet, and for a file that is not ours."""
    try:
        records = read_json(partial_run.tracker, MAX_CONFIG_BYTES, within=partial_run.path)
    except (OSError, ValueError):
        return {}
    return {name: record for name, record in records.items() if _is_record(record)} if isinstance(records, dict) else {}


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not {"id", "name", "told"} <= record.keys():
        return False
    texts, reported = (record["id"], record["name"]), record["told"]
    return all(isinstance(text, str) for text in texts) and type(reported) is int and -1 <= reported < 2**63
