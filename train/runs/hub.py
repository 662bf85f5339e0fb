"""Upload a run to the Hugging Face Hub with a model card, and download it into a run folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError, RunError
from ...pipeline.files.hub.transfers import fetch, is_hub_id, upload
from ...pipeline.files.limits import MAX_RESULT_BYTES, MAX_WEIGHT_BYTES
from ...pipeline.files.plain import open_file, read_json
from ...pipeline.files.rights import follow_umask
from ...pipeline.messages import command, markdown, markdown_code
from .meta import METRICS, RunMeta, read_meta

CARD = "README.md"
WEIGHTS = ("adapter_model.safetensors", "world_reader.safetensors")
TEXTS = ("adapter_config.json", "theworld.json", METRICS)
EVALUATIONS = "evaluation*.json"
POLICIES = "adaptive*.json"
"""They hold the gates that `theworld ask --adaptive gate` uses."""
_COPY_BYTES = 2**22


def push(run: Path, hub_id: str, *, private: bool = False) -> str:
    """Upload a run, with a card.

    Returns:
        The URL of the repository.
    Raises:
        RunError: the run is incomplete, or the Hub refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepare_upload(run, Path(folder), hub_id)
        return upload(Path(folder), hub_id, private=private, error=RunError)


def pull(hub_id: str, out: Path) -> Path:
    """Download a run into the new folder `out`.

    Args:
        hub_id: ORG/NAME or ORG/NAME@REVISION.
    Raises:
        RunError: the folder exists, the Hub has no such run, or the repository is not a run.
    """
    if out.exists():
        raise RunError(f"{out} exists already; runs are never overwritten. Choose another folder")
    wanted = [*WEIGHTS, *TEXTS, EVALUATIONS, POLICIES, CARD]
    snapshot = fetch(hub_id, wanted, error=RunError, instead="copy the run folder here by other means")
    return copy_run(snapshot.folder, out)


def copy_run(source: Path, out: Path) -> Path:
    """Check a run and copy its files; the copy appears complete or not at all.

    Raises:
        RunError: files are missing, or theworld.json is not valid.
    """
    read_meta(source)
    if missing := [name for name in (*WEIGHTS, "adapter_config.json") if not (source / name).is_file()]:
        raise RunError(f"{source} is no whole run: {missing[0]} is missing")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".run-", dir=out.parent))
    try:
        for path in _files(source):
            _copy(source, path, folder)
        follow_umask(folder)
        return folder.rename(out)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare_upload(run: Path, folder: Path, hub_id: str) -> list[str]:
    """Write what is uploaded of a run into an empty folder: weights as they are, texts without this machine's paths.

    Returns:
        The names of the files.
    Raises:
        ConfigError: `hub_id` is not ORG/NAME.
        RunError: the run is incomplete, or a text in it is not what theworld writes.
    """
    if not is_hub_id(hub_id) or "@" in hub_id:
        raise ConfigError(f"{hub_id!r} is not a place on the Hub: write ORG/NAME, with your user name as ORG")
    meta = read_meta(run)
    if missing := [name for name in (*WEIGHTS, *TEXTS) if not (run / name).is_file()]:
        raise RunError(f"{run} is no whole run: {missing[0]} is missing. Train again, or push another one")
    for path in _files(run):
        if path.name in WEIGHTS:
            _copy(run, path, folder)
        elif path.name != CARD:
            try:
                content = without_paths(_read(run, path))
                if path.name == "adapter_config.json":
                    content["base_model_name_or_path"] = base_model(meta)
                text = json.dumps(content, indent=2)
            except RecursionError as error:  # it could be read, but is too deep to be walked through
                raise _not_ours(path, "it is nested too deeply") from error
            (folder / path.name).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(card(run, hub_id), encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


def card(run: Path, hub_id: str) -> str:
    """The model card of a run, as Markdown.

    Raises:
        RunError: the figures in its files are not what theworld writes.
    """
    meta, metrics = read_meta(run), _read(run, run / METRICS)
    try:
        text = _card(run, hub_id, meta, metrics)
        text.encode()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _not_ours(run, f"its figures cannot be shown in a card: {error!r}"[:400]) from error
    return text


def _card(run: Path, hub_id: str, meta: RunMeta, metrics: dict[str, Any]) -> str:
    base, recipe, reader = base_model(meta), meta.recipe, meta.reader
    base_line = f"base_model: {base}\n" if is_hub_id(base) else ""  # what is no id of the Hub could be any YAML
    last = metrics["loss"][-1]["loss"] if metrics.get("loss") else float("nan")
    ask = 'theworld ask runs/pulled IMAGE "QUESTION"'
    if not base_is_public(meta):
        ask = 'theworld ask runs/pulled IMAGE "QUESTION" --lm PLACE'
    return f"""---
library_name: peft
{base_line}tags:
- theworld
- world-model
- lora
---
# {markdown(hub_id)}

A reader of predicted futures for the language model {markdown_code(base)}: LoRA adapters, and the projector \
that turns the latents
of a world model's rollout into tokens.

```sh
{command("pull", hub_id, "runs/pulled")}
{ask}
```

{_base_needed(meta)}

peft loads the adapters alone: {markdown_code(f"PeftModel.from_pretrained(base, {json.dumps(hub_id)})")}.

| | |
|---|---|
| language model | {markdown_code(base)} ({markdown(_identities(meta))}) |
| world model | {markdown_code(_named(recipe.world))} |
| recipe | {markdown(meta.recipe_id)}: {markdown(recipe.kind)}, {recipe.rollout_steps} rollout steps, \
{recipe.height}x{recipe.width} |
| reads | {reader.num_world_steps} rollout steps, layout {markdown(reader.layout)}, \
arm {markdown(str(meta.config.get("arm", "rollout")))} |
| latents | {meta.store.samples:,} images (keys: sha256:{markdown(meta.store.keys_sha256[:16])}…) |
| questions | {meta.questions.train:,} to learn from ({markdown_code(Path(meta.questions.path).name)}, \
sha256:{markdown(meta.questions.sha256[:16])}…) |
| training | {metrics["train_steps"]:,} updates of {markdown(str(meta.config["batch_size"]))} images, \
seed {markdown(str(meta.config["seed"]))}, \
last loss {last:.3f} |
| made with | {markdown(", ".join(f"{name} {version}" for name, version in sorted(meta.versions.items())))} |

## Accuracy

{_accuracy(run)}
"""


def base_model(meta: RunMeta) -> str:
    """The language model's public name: `ORG/NAME`, `worldlet`, or the name of its folder."""
    source = meta.lm.source
    return Path(source).name if Path(source).is_absolute() else source.partition("@")[0]


def base_is_public(meta: RunMeta) -> bool:
    """Whether any machine finds the language model by the name in the run."""
    return meta.lm.source == "worldlet" or is_hub_id(meta.lm.source)


def _identities(meta: RunMeta) -> str:
    return ", ".join(dict.fromkeys(filter(None, (meta.lm.identity, meta.lm.content))))


def _base_needed(meta: RunMeta) -> str:
    """Which language model a reader of the card needs, and how theworld tells it."""
    base = markdown_code(base_model(meta))
    if meta.lm.source == "worldlet":
        return "The adapters need the language model that comes with theworld."
    if base_is_public(meta):
        way = f"The adapters need the language model {base}, which theworld downloads from the Hub."
        if meta.lm.content is None:
            return way
        return f"{way} A folder with the same files does as well: {markdown_code('--lm FOLDER')}."
    return (
        f"The adapters need the language model that lay in {base}, and no other; it is not part of this repository. "
        f"{markdown_code('--lm PLACE')} says where it lies: a folder, a .gguf file or a Hub id. theworld knows it by "
        f"its content, {markdown(meta.lm.content or meta.lm.identity)}."
    )


def without_paths(value: Any) -> Any:
    """The same JSON value with every absolute path shortened to its last part."""
    if isinstance(value, dict):
        return {name: without_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _named(world: str) -> str:
    return Path(world).name if Path(world).is_absolute() else world


def _accuracy(run: Path) -> str:
    tables: list[str] = []
    for path in sorted(run.glob(EVALUATIONS)):
        evaluation = _read(run, path)
        scores = {**evaluation.get("by_type", {}), "all": evaluation.get("overall", {})}
        lines = [
            f"| {markdown(kind)} | {score['accuracy']:.3f} | {score['low']:.3f} to {score['high']:.3f} "
            f"| {markdown(str(score['total']))} |"
            for kind, score in scores.items()
            if score
        ]
        split = evaluation.get("split") or "all"
        subtitle = markdown(f"{evaluation.get('steps')} rollout steps, shown: {evaluation.get('arm', 'rollout')}")
        head = f"Split {markdown_code(str(split))}, {subtitle}"
        head += f", {evaluation['left_out']:,} questions left out" if evaluation.get("left_out") else ""
        if evaluation.get("rules", 1) == 1:  # whatever today's are, these are told from them
            head += ", own words judged by the first rules (`theworld evaluate --rescore` judges again)"
        columns = ["| questions | accuracy | 95 % interval | asked |", "|---|---|---|---|"]
        tables.append("\n".join([head, "", *columns, *lines]))
    return "\n\n".join(tables) or "Not evaluated: `theworld evaluate` writes what stands here."


def _copy(run: Path, path: Path, folder: Path) -> None:
    try:
        with open_file(path, MAX_WEIGHT_BYTES, within=run) as file, (folder / path.name).open("wb") as copy:
            shutil.copyfileobj(file, copy, _COPY_BYTES)
    except ValueError as error:
        raise RunError(f"{path} is not copied: {error}") from error


def _read(run: Path, path: Path) -> dict[str, Any]:
    """One text of a run.

    Raises:
        RunError: it is no JSON object.
    """
    try:
        content = read_json(path, MAX_RESULT_BYTES, within=run)
    except (OSError, ValueError) as error:
        raise _not_ours(path, str(error)) from error
    if not isinstance(content, dict):
        raise _not_ours(path, "it is no JSON object")
    return content


def _not_ours(path: Path, why: str) -> RunError:
    return RunError(f"{path} is not what theworld wrote: {why}. Train or evaluate again, or push another run")


def _files(run: Path) -> list[Path]:
    paths = [run / name for name in (*WEIGHTS, *TEXTS, CARD)]
    return [path for path in paths if os.path.lexists(path)] + sorted([*run.glob(EVALUATIONS), *run.glob(POLICIES)])
