"""The table of all readers: which functions read a format, how they are called, and with which files mutations begin.

`test_readers.py` holds it against the source: a function that opens a file stands here, or among those that read no
stranger's files, with the reason.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import xxhash

from theworld.pipeline import matmul_speed
from theworld.pipeline.config import load_config
from theworld.pipeline.errors import ConfigError, TheWorldError
from theworld.pipeline.files import hash_cache, lock_file
from theworld.pipeline.files.hash_cache import HashCache
from theworld.pipeline.files.hub.gguf_header import check_gguf
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.files.sealed import seal, seal_tensors, unseal
from theworld.pipeline.files.tables.arrow import saved_files
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.find import store_of
from theworld.pipeline.store.folder import load_store, open_store
from theworld.pipeline.store.keys import snapshot
from theworld.pipeline.store.keys.dropped import salvage
from theworld.pipeline.store.manifest import StatedSpec
from theworld.pipeline.store.promises import promised_and_gone, unmade_keys
from theworld.pipeline.store.upkeep.retire import finish_retirements
from theworld.pipeline.store.upkeep.summary import summarise
from theworld.pipeline.store.upkeep.transfer import export, read_keys
from theworld.pipeline.store.upkeep.verify import LEVELS, verify
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs
from theworld.precompute.inputs.lookup import InputLookup, key_named
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.job.planning.throughput import ThroughputLog
from theworld.precompute.job.watching.status import lines_of, read_status, table_of
from theworld.precompute.media.video_times import Window
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worldlet.scenes.files import read_truth, write_scenes
from theworld.precompute.worlds.family import read_configs, size_multiple
from theworld.precompute.worlds.prompts import load_prompt_embeddings
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.source import find_autoencoder, find_dimensions, resolve_world
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.precompute.worlds.text_rows import stack_prompts
from theworld.train.config import TrainConfig
from theworld.train.evaluation.live_answer import read_gate
from theworld.train.evaluation.results.saved import read_evaluation
from theworld.train.language.lm import load_language_model, load_tokenizer_only
from theworld.train.language.tokenizer_files import read_prompt_format
from theworld.train.language.weights import find_weights
from theworld.train.questions.readers import digest_of, files_of
from theworld.train.questions.record import read_question_file
from theworld.train.questions.report import describe
from theworld.train.reader.context_budget import find_context_limits
from theworld.train.runs import hub
from theworld.train.runs.folder import load_run
from theworld.train.runs.meta import read_meta
from theworld.train.runs.partial import PartialRun, read_facts, resumed_config
from theworld.train.study import folder as study_folder
from theworld.train.study.findings import read_outcomes
from theworld.train.training.checkpoint import read_checkpoint
from theworld.train.training.trackers import _read_records

from .seeds import PROMPT, RECIPE, SPEC_OF_IMAGES, Case, Seeds

Mend = Callable[[str, bytes], tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One way in for files of others."""

    name: str
    covers: tuple[str, ...]
    """The functions that open files, as `openers` names them."""
    cases: Callable[[Seeds], list[Case]]
    use: Callable[[Path], object]
    """What is done with the folder that the files lie in."""
    share: float = 1.0
    """How many inputs it gets, beside the others: a slow reader gets few."""
    errors: tuple[type[BaseException], ...] = (TheWorldError,)
    """What it may raise: errors in words, for the user."""
    mends: tuple[Mend, ...] = ()
    """Make seals and digests right, so that what they guard is reached; half of the inputs are mended."""
    starts_processes: bool = False
    """It reads in processes of its own, which are a part of how it is guarded."""
    contained: bool = False
    """In the product it runs in a process with limits (sandbox.py): a crash costs one input, and is counted here."""
    writes: bool = False
    """It may write in the folder that it reads."""
    message: int = 40_000
    """Characters that an error's text may have. Some quote words of the file in full, such as unknown keys."""
    follows_paths: bool = False
    """A list may name files anywhere: what lies elsewhere is the choice of its user."""
    elsewhere: tuple[str, ...] = ()
    """Of `covers`, what runs in another process, where this one cannot see it."""


def each(*uses: Callable[[], object]) -> None:
    """Do all of it; what the first raises in words is raised at the end."""
    first: TheWorldError | None = None
    for use in uses:
        try:
            use()
        except TheWorldError as error:
            first = first or error
    if first is not None:
        raise first


# stores


def _use_store(folder: Path) -> None:
    place = folder / "store"

    def tolerate() -> None:
        store = open_store(place, tolerate_damage=True)
        for key in store.keys[:8]:
            with suppress(TheWorldError):
                store.read([key])
        each(store.sources, store.failures, store.prompts, lambda: summarise(store).lines())

    each(lambda: open_store(place), tolerate, lambda: store_of(Folder(folder), "0" * 64))


def _verify_store(folder: Path) -> None:
    each(*(lambda level=level: verify(folder / "store", level=level).damage for level in LEVELS))
    _use_store(folder)


def _use_index(folder: Path) -> None:
    each(lambda: _use_store(folder), lambda: promised_and_gone(load_store(folder / "store")))


def _use_logs(folder: Path) -> None:
    each(lambda: _use_store(folder), lambda: unmade_keys(load_store(folder / "store")))


def _use_dropped(folder: Path) -> None:
    for file in (folder / "store" / "dropped").iterdir():
        salvage(Folder(folder / "store"), f"dropped/{file.name}")
    _verify_store(folder)


def _finish_retirements(folder: Path) -> None:
    _verify_store(folder)
    finish_retirements(load_store(folder / "store"))


def _copy_store(folder: Path) -> None:
    store = open_store(folder / "store", tolerate_damage=True)
    with tempfile.TemporaryDirectory() as place:
        export(store, Path(place) / "copy", format="webdataset")


def _read_prompts(folder: Path) -> None:
    def embeddings() -> None:
        stack_prompts(TextEmbeddings.load(folder / "store" / "prompt.safetensors").padded(2))

    each(
        embeddings,
        lambda: stack_prompts(load_prompt_embeddings(folder / "store", [PROMPT, PROMPT], None).padded(2)),
    )


def _reseal(name: str, content: bytes) -> tuple[str, bytes]:
    """A record, a failure, a manifest with a right seal; sources under the name that fits them."""
    if "/sources/" in f"/{name}" or "/dropped/" in f"/{name}":
        path = Path(name)
        return str(path.with_name(hashlib.sha256(content).hexdigest() + path.suffix)), content
    if not name.endswith(".json"):
        return name, content
    try:
        body = json.loads(content)
        body.pop("seal", None)
        return name, seal(body)
    except (ValueError, TypeError, AttributeError, RecursionError):
        text = content.rstrip().removesuffix(b"}")
        return name, text + b',"seal":"' + hashlib.sha256(text + b"}").hexdigest().encode() + b'"}\n'


def _restate_recipe(name: str, content: bytes) -> tuple[str, bytes]:
    """A manifest whose recipe's id is right."""
    with suppress(Exception):
        body = json.loads(unseal(content))
        body["recipe_id"] = Recipe.model_validate(body["recipe"]).id
        return name, seal(body)
    return name, content


def _reseal_tensors(*purposes: str, unsealed: Collection[str] = ()) -> Mend:
    def mend(name: str, content: bytes) -> tuple[str, bytes]:
        with suppress(Exception):
            tensors = dict(safetensors.numpy.load(content))
            old, purpose = tensors["seal"], purposes[len(content) % len(purposes)]
            sealed = {name: tensor for name, tensor in tensors.items() if name not in ("seal", *unsealed)}
            new = seal_tensors(sealed, purpose)
            # in place: one reader takes nothing that is laid out otherwise
            return name, content.replace(old.tobytes(), new.tobytes())
        return name, content

    return mend


# inputs


def _use_listing(listing: Listing) -> None:
    """What a job does with what it found: failures are sealed into the store's ledger, inputs are read again."""
    for failure in listing.refused:
        seal(asdict(failure))
        assert isinstance(failure.source, str)
        failure.file_name  # noqa: B018
    for sample in listing.samples[:4]:
        with suppress(TheWorldError):
            sample.location.read(2**20)


_LISTS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
_PACKED_LISTS = ("packed.jsonl.gz", "packed.csv.bz2")


def _list(folder: Path, *names: str, kind: Any = "rollout", prompts: bool = True) -> None:
    for name in names:
        if (folder / name).exists():
            _use_listing(list_inputs(folder / name, kind))
            if prompts:
                _use_listing(list_inputs(folder / name, kind, column="image", prompt_field="prompt"))


def _list_pattern(folder: Path) -> None:
    text = (folder / "pattern.txt").read_bytes().decode("utf-8", "surrogateescape")
    text = text.replace("..", "").lstrip("/~")  # what a user types may lead anywhere; here it stays inside
    if text.startswith("hf:"):
        return
    _use_listing(list_inputs(folder / text, "rollout"))


def _list_names(folder: Path) -> None:
    names = (folder / "names.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")[:50]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "in"
        root.mkdir()
        for number, name in enumerate(names):
            path = root / name.replace("..", "").replace("outside", "inside").lstrip("/")
            with suppress(OSError, ValueError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"content %d" % number)
        each(lambda: _use_listing(list_inputs(root, "rollout")), lambda: _use_listing(list_inputs(root, "frames")))


def _decode(folder: Path) -> None:
    content = (folder / "image.png").read_bytes()
    pixels = KINDS["rollout"].load(content, RECIPE, SPEC_OF_IMAGES, "image.png").pixels
    assert tuple(pixels.shape) == (3, 32, 32)
    assert torch.isfinite(pixels).all()


_OF_VIDEOS = Recipe(world="sha256:" + "0" * 64, height=32, width=32, rollout_steps=1, kind="frames")


def _decode_video(folder: Path) -> None:
    content = (folder / "video.mp4").read_bytes()
    by_time = _OF_VIDEOS.model_copy(update={"clip_fps": 12.0})
    picture = Recipe(world=_OF_VIDEOS.world, height=32, width=32, rollout_steps=1)
    each(
        lambda: KINDS["frames"].load(content, _OF_VIDEOS, SPEC_OF_IMAGES, "video.mp4"),
        lambda: KINDS["frames"].load(content, by_time, SPEC_OF_IMAGES, "video.mp4", Window(0.1)),
        lambda: KINDS["rollout"].load(content, picture, SPEC_OF_IMAGES, "video.mp4", Window(6.0)),
    )


def _use_hash_cache(folder: Path) -> None:
    HashCache.load(folder / "cache", Path("place"), "image")


# questions


def _read_questions(folder: Path, name: str) -> None:
    file = read_question_file(folder / name)
    describe(file).lines()
    json.dumps(describe(file).to_json())
    with suppress(ConfigError):
        file.require(10**9, Progress.silent())


def _questions_of(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.suffix in _QUESTIONS]
    each(*(lambda name=name: _read_questions(folder, name) for name in names))
    each(*(lambda name=name: digest_of(folder / name) for name in names))


_QUESTIONS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow"}


# runs


def _push_run(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        hub.prepare_upload(folder / "run", Path(place), "org/name")


def _pull_run(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        hub.copy_run(folder / "run", Path(place) / "copy")


def _use_run(folder: Path) -> None:
    run = folder / "run"
    each(
        lambda: read_meta(run),
        lambda: read_evaluation(run).model_dump_json(),
        lambda: read_gate(run, 3),
        lambda: _push_run(folder),
        lambda: _pull_run(folder),
    )


def _load_run(folder: Path) -> None:
    load_run(folder / "run", lm=str(folder / "lm"), device="cpu")


def _use_facts(folder: Path) -> None:
    place = folder / "other.partial"
    each(lambda: read_facts(place), lambda: resumed_config(place, {"device": "cpu"}))


def _use_tracker(folder: Path) -> None:
    place = folder / "other.partial"
    record = _read_records(PartialRun(place, read_facts(place))).get("tensorboard")
    assert record is None or {"name", "id", "told"} <= record.keys()


def _redigest(name: str, content: bytes) -> tuple[str, bytes]:
    """A checkpoint whose digest is right."""
    if not name.endswith("checkpoint.safetensors"):
        return name, content
    with suppress(Exception):
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        training = json.loads(header["__metadata__"]["training"])
        total = xxhash.xxh3_128()
        for key in sorted(tensors):
            total.update(key.encode())
            total.update(np.ascontiguousarray(tensors[key]).reshape(-1).view(np.uint8).data)
        training["digest"] = total.hexdigest()
        header["__metadata__"]["training"] = json.dumps(training)
        text = json.dumps(header).encode()
        return name, len(text).to_bytes(8, "little") + text + content[8 + length :]
    return name, content


# models


def _read_world(folder: Path) -> None:
    world = str(folder / "world")

    def use() -> None:
        source = resolve_world(world)
        spec = source.latent_spec()
        height, width = source.card.height, source.card.width
        recipe = Recipe(world=source.identity, height=height, width=width, rollout_steps=2)
        source.weight_bytes()
        StatedSpec.model_validate(asdict(spec))  # as the store does that is made of it
        operations_of(source, recipe)
        size_multiple(source.family, read_configs(source.folder))

    each(lambda: find_dimensions(world), use, lambda: find_autoencoder(world))


def _load_world(folder: Path) -> None:
    each(
        lambda: load_world(folder / "world"),
        lambda: find_autoencoder(str(folder / "world")).load_autoencoder(device="cpu"),
    )


def _read_lm(folder: Path) -> None:
    place = str(folder / "lm")
    each(
        lambda: find_context_limits(place),
        lambda: load_tokenizer_only(find_weights(place)),
        lambda: read_prompt_format(find_weights(place)),
    )


def _load_lm(folder: Path) -> None:
    load_language_model(find_weights(str(folder / "lm")), device=torch.device("cpu"), dtype=torch.float32)


# settings and studies


def _read_settings(folder: Path) -> None:
    file = folder / "settings.toml"
    each(
        lambda: load_config(PrecomputeConfig, "precompute", file, {}),
        lambda: load_config(TrainConfig, "train", file, {}),
    )


def _use_machines(folder: Path) -> None:
    log = ThroughputLog.load(folder)
    log.fitted(RECIPE)
    log.note_rate(RECIPE, "a card", 1000, 2.0)
    with tempfile.TemporaryDirectory() as place:
        log.path = Path(place) / "machines.json"
        log.save(Path(place))


def _use_jobs(folder: Path) -> None:
    status = read_status(folder)
    each(lambda: table_of(status), lambda: lines_of(status), lambda: json.dumps(status.to_json()))


def readers(seeds: Seeds) -> list[Reader]:
    """All of them."""

    def in_study(folder: Path) -> Any:
        return replace(seeds.studied, out=folder / "study")

    def claim(folder: Path) -> None:
        facts = json.loads((seeds.studied.out / "study.json").read_bytes())
        study_folder.claim(folder / "study", facts)

    def units(folder: Path) -> None:
        study = in_study(folder)
        for unit in study.units():
            source = study_folder.read_unit(seeds.studied, unit).provenance
            assert source is not None
            study_folder.is_done(study, unit, ["test", "ood"], source, Progress.silent())
            study_folder.read_unit(study, unit)

    def lookup(folder: Path) -> None:
        store = open_store(folder / "store", tolerate_damage=True)
        each(
            lambda: [InputLookup(store, folder).has(key) for key in store.keys],
            lambda: key_named(store, "0.png"),
            lambda: key_named(store, str(folder / "no such file")),
        )

    store_files = (
        "pipeline.store.reading.row_reader:RowReader._open",
        "pipeline.store.reading.shard_files:ShardFile.__init__",
    )
    plain = "pipeline.files.plain:open_file", "pipeline.files.plain:read_file.read"
    table_files = ("pipeline.files.tables.batches:open_parquet", "pipeline.files.tables.arrow:_open_arrow")
    pretrained = (
        *(
            f"pipeline.files.hub.pretrained:{name}"
            for name in ("_load", "_object", "_shapes", "_header", "require_plain")
        ),
        "pipeline.files.hub.weight_checks:check_weight_files",
    )
    recipe_ids = tuple({json.loads(unseal(c.files["store/theworld.json"]))["recipe_id"] for c in seeds.stores})
    return [
        Reader(
            name="store: theworld.json",
            covers=("pipeline.files.places.folder:Folder.read", *plain),
            cases=lambda s: s.stores_with("theworld.json"),
            use=_use_store,
            mends=(_reseal, _restate_recipe),
        ),
        Reader(
            name="store: zarr.json",
            covers=("pipeline.files.places.folder:Folder.read",),
            cases=lambda s: s.stores_with("zarr.json"),
            use=_verify_store,
            share=0.25,
        ),
        Reader(
            name="store: commits",
            covers=("pipeline.files.places.folder:Folder.read",),
            cases=lambda s: s.stores_with("commits/*"),
            use=_use_store,
            mends=(_reseal,),
            share=0.5,
        ),
        Reader(
            name="store: failed, sources",
            covers=(
                *("pipeline.files.places.folder:Folder.read", "pipeline.store.sources.table:_checked_lines"),
                *("pipeline.store.sources.scan:_blocks", "pipeline.store.sources.scan:_has_its_name"),
            ),
            cases=lambda s: s.stores_with("failed/*", "sources/*"),
            use=_use_logs,
            mends=(_reseal,),
            share=0.5,
        ),
        Reader(
            name="store: dropped",
            covers=("pipeline.files.places.folder:Folder.read",),
            cases=lambda s: s.stores_with("dropped/*"),
            use=_use_dropped,
            mends=(_reseal,),
            share=0.25,
        ),
        Reader(
            name="store: retiring",
            covers=("pipeline.files.places.folder:Folder.read",),
            cases=lambda s: s.stores_with("retiring/*"),
            use=_finish_retirements,
            mends=(_reseal,),
            share=0.25,
            writes=True,
        ),
        Reader(
            name="store: sources, looked up",
            covers=("precompute.inputs.lookup:key_named",),
            cases=lambda s: s.stores_with("sources/*"),
            use=lookup,
            mends=(_reseal,),
            share=0.3,
        ),
        Reader(
            name="store: index.safetensors",
            covers=(
                "pipeline.store.keys.snapshot:read_snapshot",
                "pipeline.files.places.folder:Folder.read_end",
            ),
            cases=lambda s: s.stores_with("index.safetensors"),
            use=_use_index,
            mends=(
                _reseal_tensors(
                    *(f"theworld index {snapshot._VERSION} {recipe_id} None" for recipe_id in recipe_ids),
                    unsealed=("frames_crc32c",),
                ),
            ),
            share=0.5,
        ),
        Reader(
            name="store: payloads",
            covers=(
                *store_files,
                *("pipeline.store.upkeep.names:_is_sound", "pipeline.store.upkeep.names:sound_records"),
                "pipeline.store.upkeep.names:is_in_place",
                "pipeline.store.upkeep.shard_checks:_bytes_problem",
                "pipeline.store.upkeep.shard_checks:_row_problem",
            ),
            cases=lambda s: s.stores_with("shards/*", "c/*/*", "latents/c/**/*", "latents/c/*/*/*/*/*"),
            use=_verify_store,
            share=0.5,
        ),
        Reader(
            name="store: prompts",
            covers=("precompute.worlds.text_embeddings:read_texts",),
            cases=lambda s: s.stores_with_prompts,
            use=_read_prompts,
        ),
        Reader(
            name="store: prompts, copied",
            covers=("pipeline.files.places.folder:Folder.read",),
            cases=lambda s: s.stores_with_prompts,
            use=_copy_store,
            share=0.02,
        ),
        Reader(
            name="keys",
            covers=("pipeline.store.upkeep.transfer:read_keys",),
            cases=lambda s: s.keys,
            use=lambda folder: read_keys(folder / "keys.txt"),
            share=0.3,
        ),
        Reader(
            name="GGUF headers",
            covers=("pipeline.files.hub.gguf_header:check_gguf",),
            cases=lambda s: s.gguf_files,
            use=lambda folder: check_gguf(folder / "model.gguf"),
            errors=(ValueError,),
        ),
        Reader(
            name="hash cache",
            covers=("pipeline.files.hash_cache:_load",),
            cases=lambda s: s.hash_caches,
            use=_use_hash_cache,
            mends=(_reseal_tensors(hash_cache._WHAT),),
        ),
        Reader(
            name="lists",
            covers=(
                "pipeline.files.tables.text:_csv_records",
                "pipeline.files.tables.text_streams:open_text",
                "precompute.inputs.first_bytes:look_at",
                "precompute.inputs.locations:File.read",
                "pipeline.files.images.decode:read_input_file",
            ),
            cases=lambda s: s.lists,
            use=lambda folder: _list(folder, *(f"list{suffix}" for suffix in _LISTS), *_PACKED_LISTS),
            follows_paths=True,
            share=1.5,
        ),
        Reader(
            name="tars",
            covers=("precompute.inputs.tars.members:members", "precompute.inputs.locations:TarMember.read"),
            cases=lambda s: s.tars,
            use=lambda folder: _list(folder, "x.tar", prompts=False),
            share=1.5,
        ),
        Reader(
            name="tables of inputs",
            covers=table_files,
            elsewhere=table_files,
            cases=lambda s: s.tables,
            use=lambda folder: _list(folder, "t.parquet", "t.arrow"),
            follows_paths=True,
            share=0.05,
            starts_processes=True,
        ),
        Reader(
            name="save_to_disk folders",
            covers=("pipeline.files.tables.arrow:_read_json",),
            cases=lambda s: s.saved_data_sets,
            use=lambda folder: each(lambda: saved_files(folder / "saved"), lambda: files_of(folder / "saved")),
        ),
        Reader(
            name="patterns",
            covers=(),
            cases=lambda s: s.patterns,
            use=_list_pattern,
            message=2**30,  # it repeats what the user has typed
            share=0.5,
        ),
        Reader(
            name="names of files",
            covers=(),
            cases=lambda s: s.names,
            use=_list_names,
            share=0.3,
        ),
        Reader(
            name="images",
            covers=("pipeline.files.images.decode:_decode",),
            cases=lambda s: s.images,
            use=_decode,
            contained=True,
        ),
        Reader(
            name="videos",
            covers=("precompute.media.video_files:open_video",),
            cases=lambda s: s.videos,
            use=_decode_video,
            share=0.1,
            contained=True,
        ),
        Reader(
            name="questions",
            covers=(
                "train.questions.readers:digest_of",
                "pipeline.files.hashing:digest_of_file",
            ),
            cases=lambda s: s.questions,
            use=_questions_of,
            share=2.0,
        ),
        Reader(
            name="questions: VPCT",
            covers=("train.questions.readers:_vpct_rows",),
            cases=lambda s: s.vpct,
            use=lambda folder: _read_questions(folder, "vpct"),
            share=0.5,
        ),
        Reader(
            name="questions: tables",
            covers=table_files,
            elsewhere=table_files,
            cases=lambda s: s.tables[:4],
            use=_questions_of,
            share=0.05,
            starts_processes=True,
        ),
        Reader(
            name="runs: texts",
            covers=(
                "train.runs.meta:read_meta",
                "train.evaluation.results.saved:read_saved",
                "train.evaluation.live_answer:read_gate",
                "train.runs.hub:_read",
            ),
            cases=lambda s: s.run("*.json"),
            use=_use_run,
            share=0.5,
        ),
        Reader(
            name="runs: weights",
            covers=(
                *("train.language.lora:_read_lora_config", "train.language.lora:load_adapter"),
                *("train.runs.folder:_load_reader", *pretrained),
            ),
            cases=lambda s: s.run_with_model("theworld.json", "adapter_config.json", "*.safetensors"),
            use=_load_run,
            share=0.02,
            starts_processes=True,
        ),
        Reader(
            name="trainings: training.json",
            covers=("train.runs.partial:read_facts",),
            cases=lambda s: s.partial("training.json"),
            use=_use_facts,
        ),
        Reader(
            name="trainings: tracker.json",
            covers=("train.training.trackers:_read_records",),
            cases=lambda s: s.partial("tracker.json"),
            use=_use_tracker,
        ),
        Reader(
            name="trainings: checkpoint",
            covers=("train.training.checkpoint:read_checkpoint",),
            cases=lambda s: s.partial("checkpoint.safetensors"),
            use=lambda folder: read_checkpoint(folder / "other.partial" / "checkpoint.safetensors"),
            mends=(_redigest,),
        ),
        Reader(
            name="worlds: configs",
            covers=(
                "precompute.worlds.family:read_config",
                "pipeline.files.plain:read_json",
            ),
            cases=lambda s: s.worlds_with("*.json"),
            use=_read_world,
            share=0.1,
        ),
        Reader(
            name="worlds: weights",
            covers=(
                *("precompute.worlds.wan.vae:load_part", "precompute.worlds.wan.engine:load_scheduler"),
                *("precompute.worlds.wan.wan21:Wan21World.load.load", *pretrained),
                *(
                    "precompute.worlds.cosmos.cosmos3:Cosmos3World.load",
                    "precompute.worlds.cosmos.cosmos3_text:load_towers",
                ),
                *(
                    "precompute.worlds.anyflow.engine:AnyFlowWorld.load",
                    "precompute.worlds.vjepa2.engine:VJepa2World.load",
                ),
            ),
            cases=lambda s: s.worlds_with("*config.json", "*.safetensors", "model_index.json"),
            use=_load_world,
            share=0.01,
        ),
        Reader(
            name="language models: configs and tokenizers",
            covers=(
                *("train.language.lm:_architecture", "train.language.lm:_load_tokenizer"),
                *("train.language.lm:load_lm_config", "train.reader.context_budget:_read_room"),
                "train.language.tokenizer_files:FileTokenizer.from_pretrained",
                *("train.language.tokenizer_files:_object", "train.language.tokenizer_files:read_prompt_format"),
                "pipeline.files.hub.tokenizer_json:_check",
            ),
            cases=lambda s: s.language_model("*.json"),
            use=_read_lm,
            share=0.05,
            starts_processes=True,
        ),
        Reader(
            name="language models: weights",
            covers=("train.language.lm:load_language_model", *pretrained),
            cases=lambda s: s.language_model("config.json", "tokenizer.json", "*.safetensors"),
            use=_load_lm,
            share=0.02,
            starts_processes=True,
        ),
        Reader(
            name="settings",
            covers=("pipeline.config:read_table",),
            cases=lambda s: s.configs,
            use=_read_settings,
        ),
        Reader(
            name="studies: study.json",
            covers=("train.study.folder:read_facts",),
            cases=lambda s: s.study_files("study.json"),
            use=claim,
            writes=True,
        ),
        Reader(
            name="studies: units",
            covers=("train.study.folder:read_answers", "pipeline.files.plain:read_json_text"),
            cases=lambda s: s.study_files("units/*"),
            use=units,
        ),
        Reader(
            name="outcomes",
            covers=("train.study.findings:read_outcomes",),
            cases=lambda s: [Case(case.files, tuple(case.files)) for case in s.outcomes],
            use=lambda folder: read_outcomes(folder / "outcomes.json"),
            share=0.5,
        ),
        Reader(
            name="lock files",
            covers=("pipeline.files.lock_file:_holder_of",),
            cases=lambda s: s.lock_files,
            use=lambda folder: lock_file.holder(folder / "locked.json"),
        ),
        Reader(
            name="machines.json",
            covers=("precompute.job.planning.throughput:ThroughputLog.load",),
            cases=lambda s: s.machines,
            use=_use_machines,
        ),
        Reader(
            name="speeds.json",
            covers=("pipeline.matmul_speed:_read",),
            cases=lambda s: s.speeds,
            use=lambda folder: matmul_speed._read(folder / "speeds.json"),
        ),
        Reader(
            name="events of jobs",
            covers=("precompute.job.watching.job_runs:_events_of",),
            cases=lambda s: s.jobs,
            use=_use_jobs,
        ),
        Reader(
            name="scenes",
            covers=("pipeline.files.tables.text_streams:open_text",),
            cases=lambda s: s.scenes,
            use=lambda folder: each(
                lambda: read_truth(folder / "scenes"),
                lambda: write_scenes(folder / "scenes", splits={}),
            ),
            share=0.3,
            writes=True,
        ),
    ]
