"""The table of readers is whole: every function that opens a file is fuzzed, or reads no stranger's files."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ..faults.harness import in_child
from .harness import Bench, Input
from .openers import ROOMS, openers
from .readers import Reader, readers
from .seeds import Seeds

OWN_WORK = "development of the embedded models reads what it has just written"
OF_OTHERS = {
    "pipeline.cli.demo:_cost_html": "metrics of the run that this demo has just trained",
    "pipeline.cli.doctor.checks:_cgroup_limit": "the kernel's",
    "pipeline.cli.hub:push": "the card that it has just written",
    "pipeline.files.atomic:_sync": "opens to sync, and reads nothing",
    "pipeline.files.atomic:_copy_beside": "copies bytes, whatever they are",
    "pipeline.files.inside:_open_within": "opens folders, and reads nothing",
    "pipeline.files.inside:held_folder": "opens folders, and reads nothing",
    "pipeline.files.lock:exclusive_lock": "opens to lock, and reads nothing",
    "pipeline.files.lock_holder:_read": "the kernel's",
    "pipeline.files.lock_holder:_started": "the kernel's",
    "pipeline.files.hub.chat_renderer:main": "its parent's pipe, guarded: test_chat_template.py",
    "pipeline.files.places.folder:Folder.open": "hands files to the readers of `store: failed, sources` and of copies",
    "pipeline.files.places.folder:Folder.read_into": "bytes checked against a record: `store: payloads`",
    "pipeline.files.hub.dataset:HubDataset.read": "hashes bytes, whatever they are",
    "pipeline.files.places.placing:_prove_in": "files that it has just written",
    "pipeline.files.remote:read_head": "the first bytes, for the readers of `images` and `videos`",
    "pipeline.store.reading.bucket_reader:BucketRowReader._open_copy": "what ShardFile reads, as of `store: payloads`",
    "pipeline.store.reading.shard_cache:ShardCache._claim": "a folder's marker: compared with known content",
    "pipeline.store.reading.shard_cache:ShardCache._open_marker": "opens to lock, and reads nothing",
    "pipeline.store.reading.shard_cache:_remove_if_dead": "opens to lock, and reads nothing",
    "pipeline.store.reading.shard_fetch:CachedShards._open_part": "opens to write",
    "pipeline.store.reading.shard_fetch:_open_whole": "what ShardFile reads, as of `store: payloads`",
    "precompute.inputs.listing.remote_places:_files": "copies for the readers of `lists`, `tars`, `tables of inputs`",
    "pipeline.files.images.decode:decode_image": "read_image, as of `images`",
    "pipeline.files.plain:has_content": "compares with content that is known",
    "pipeline.files.tables.process:_limit": "the kernel's",
    "pipeline.files.rights:current_umask": "the kernel's",
    "pipeline.files.hub.weight_hashes:_digests.digest_of": "hashes bytes, whatever they are",
    "pipeline.latents.keys:key_of_file": "hashes bytes, whatever they are",
    "pipeline.files.tables.text:_RowLines.has_open_quote": "a row that the reader of `lists` has just read",
    "pipeline.streams:secure_streams": "the standard streams of this process",
    "pipeline.machine:_cpu_groups": "the kernel's",
    "pipeline.machine:_quota_of": "the kernel's",
    "pipeline.machine:cpu_model": "the kernel's",
    "pipeline.matmul_speed:_key": "the kernel's",
    "pipeline.store.upkeep.compact:_fill": "holds a record open that was read by then, and reads nothing",
    "pipeline.store.upkeep.retire:_is_payload": "hashes bytes, whatever they are",
    "pipeline.store.reading.views:_CommittedFiles._content": "hands bytes to zarr-python, whatever they are",
    "pipeline.store.reading.views:_Decoder.__call__": "numpy without pickles, and json, of a row of a tar",
    "pipeline.store.reading.views:_Samples._opened": "hands tars to webdataset, which a caller has asked for",
    "pipeline.theworld.model:TheWorld.save_pretrained": "copies bytes, whatever they are",
    "pipeline.theworld.processor:Processor._pictures": "decode_image, as of `images`",
    "pipeline.theworld.processor:_content_of": "decode_image, as of `images`",
    **dict.fromkeys(
        (
            f"precompute.inputs.listing.{name}"
            for name in (
                *("containers:_add_list", "containers:_add_table", "containers:_add"),
                *("places:_named", "places:_folder", "places:_saved"),
            )
        ),
        "hands places to the readers of `lists`, `tars` and `tables of inputs`",
    ),
    "precompute.inputs.listing.containers:_add_tar": "hands a tar to the reader of `tars`",
    "precompute.inputs.decoding_process:_limit": "the kernel's",
    "precompute.job.watching.events:_is_torn": "its last byte, whatever it is",
    "precompute.job.workers.ray_local:_sweep": "folders that theworld's own processes left behind",
    "precompute.preview.answer_cards:AnswerPictures._input": "decode_image, as of `images`",
    "precompute.preview.latent_decoder:LatentDecoder.load": "Autoencoder loading, as of `worlds: weights`",
    "precompute.media.images:load_image": "decode_image, as of `images`",
    "precompute.rollout.kinds:_picture": "read_image, as of `images`",
    "precompute.worldlet.scenes.files:_write": "compares with content that is known",
    "precompute.worldlet.training.build:_require_same_build": OWN_WORK,
    "precompute.worldlet.training.build:build_world": OWN_WORK,
    "precompute.worldlet.training.clips:load_chunk": OWN_WORK,
    "precompute.worldlet.training.dynamics:train_dynamics": OWN_WORK,
    "precompute.worldlet.training.encode:forget_latents_of_another": OWN_WORK,
    "precompute.worldlet.training.encode:load_latents": OWN_WORK,
    "precompute.worldlet.training.encode:measure_statistics": OWN_WORK,
    "precompute.worldlet.training.vae:train_vae": OWN_WORK,
    "precompute.worlds.cosmos.predict25_text:load_projection": "two tensors of safetensors: `store: prompts`",
    **dict.fromkeys(
        (
            f"precompute.worlds.{name}"
            for name in (
                "cosmos.predict25:Cosmos25World.load",
                "cosmos.predict25_text:load_reader.load",
                "cosmos.cosmos3_text:load_reader",
                "text_rows:load_reader",
            )
        ),
        "load_pretrained, as of `worlds: weights`",
    ),
    "train.data.vision:VisionInputs.__init__": "load_pretrained, as of `language models: weights`",
    "train.data.vision:VisionInputs.prepare": "decode_image, as of `images`",
    "train.questions.coverage:_read_digest": "hashes bytes, whatever they are",
    "train.runs.hub:_copy": "copies bytes, whatever they are",
    "train.study.findings:find": "study.json, once `studies: study.json` has read it",
    "train.study.report:write_report": "pictures that it has just drawn",
    "train.study.run:_run_unit": "metrics of a run that it has just trained",
    "train.worldlet.build:build_lm": OWN_WORK,
    "train.worldlet.build:save_lm": OWN_WORK,
}
"""Functions that open files and need no entry in the table, each with the reason."""


def test_every_function_that_opens_a_file_is_fuzzed_or_reads_no_strangers_files(seeds: Seeds) -> None:
    covered = {name for reader in readers(seeds) for name in reader.covers}
    found = openers()
    assert len(found) > 80, "the search finds less than there is"
    missing = sorted(found - covered - OF_OTHERS.keys())
    assert missing == [], "add a reader to tests/fuzz/readers.py, or the reason why none is needed to OF_OTHERS"
    assert sorted(OF_OTHERS.keys() & covered) == [], "in both"
    assert sorted((OF_OTHERS.keys() | covered) - found) == [], "no such function opens a file any more"


def test_a_function_that_opens_a_file_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    lines = "import os, json\nclass A:\n    def read(self, p):\n        with p.open('rb') as f: return json.load(f)\n"
    lines += "def write(p):\n    p.open('wb')\ndef low(p):\n    return os.open(p, os.O_RDONLY)\n"
    (tmp_path / "pipeline" / "new.py").write_text(lines)
    monkeypatch.setattr("tests.fuzz.openers.ROOT", tmp_path)
    assert openers() == {"pipeline.new:A.read", "pipeline.new:low"}


@pytest.mark.slow
def test_what_a_reader_says_it_covers_is_called_with_its_files(seeds: Seeds, scratch: Path) -> None:
    wrong: list[str] = []
    for reader in readers(seeds):
        cases = reader.cases(seeds)
        assert cases, reader.name
        assert all(case.victims for case in cases), reader.name
        place = scratch / reader.name.replace(" ", "-").replace("/", "-")
        try:
            in_child(lambda: _check_calls(reader, seeds, place))  # noqa: B023
        except AssertionError as error:
            wrong.append(str(error).splitlines()[-1])
    assert wrong == []


def _check_calls(reader: Reader, seeds: Seeds, place: Path) -> None:
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (module := frame.f_globals.get("__name__", "")).startswith("theworld."):
            called.add(f"{module.removeprefix('theworld.')}:{frame.f_code.co_qualname}".replace(".<locals>", ""))

    cases = reader.cases(seeds)
    bench = Bench(reader, cases, place)
    outcomes: list[tuple[str, str, str]] = []
    sys.setprofile(note)
    for number, case in enumerate(cases):
        given = Input(number, case.victims[0], case.victims[0], case.files[case.victims[0]])
        outcomes.append(bench.feed(given))
    sys.setprofile(None)
    missed = sorted(set(reader.covers) - set(reader.elsewhere) - called)
    assert not missed, f"{reader.name} does not call {missed}: {outcomes}"
    assert not [outcome for outcome in outcomes if outcome[1]], f"{reader.name}: {outcomes}"
