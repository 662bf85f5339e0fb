"""The files that mutations begin with: the golden stores, and what the project's own writers and others' make."""

import base64
import bz2
import gzip
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from theworld.pipeline.errors import Interrupted
from theworld.pipeline.files import lock_file
from theworld.pipeline.files.hash_cache import HashCache
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.progress import Progress
from theworld.pipeline.store import latent_store
from theworld.pipeline.store.keys.dropped import add_dropped
from theworld.pipeline.store.upkeep.retire import Note, write_note
from theworld.precompute.inputs.listing.inputs import list_inputs
from theworld.precompute.job.planning.throughput import ThroughputLog
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.precompute.worlds.prompts import prompt_file
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.train.config import TrainConfig
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.evaluation.policies.adaptive import compare_policies
from theworld.train.evaluation.policies.gates import parse_rule
from theworld.train.runs.partial import partial_of
from theworld.train.study.plan import Study
from theworld.train.study.run import run_study
from theworld.train.training.train import train

from ..faults.harness import BAD, SPEC, job
from ..faults.test_images import originals
from ..golden.make import GOLDEN
from ..miniatures.anyflow import save_mini_anyflow
from ..miniatures.cosmos3 import save_mini_cosmos3
from ..miniatures.lm import save_mini_lm
from ..miniatures.training import StopAt, lay_out, settings
from ..miniatures.vjepa2 import save_mini_vjepa2
from ..miniatures.wan22 import save_mini_ti2v, save_mini_two_stage
from ..miniatures.world_model import save_mini_wan, save_mini_world

ROOT = Path(__file__).parents[2]
PROMPT = "a ball falls"
RECIPE = Recipe(world="sha256:" + "0" * 64, height=32, width=32, rollout_steps=1)
SPEC_OF_IMAGES = SPEC


@dataclass(frozen=True)
class Case:
    """A folder of files, and which of them are mutated."""

    files: dict[str, bytes]
    victims: tuple[str, ...]

    def only(self, wanted: Callable[[str], bool]) -> "Case":
        return replace(self, victims=tuple(name for name in self.files if wanted(name)))


def case_of(folder: Path, *victims: str, under: str = "") -> Case:
    """A folder as it is on disk. Victims are patterns of paths; without any, all its files are."""
    files = {under + str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    chosen = tuple(name for name, path in files.items() if not victims or any(map(Path(name).match, victims)))
    assert chosen, (folder, victims)
    return Case({name: path.read_bytes() for name, path in files.items()}, chosen)


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 40 % 256, 100, 200)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {"a.png": png(1), "b.png": png(2), "sub/c.png": png(3)}


class Seeds:
    """Everything is made once, when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @cached_property
    def stores(self) -> list[Case]:
        """Golden stores, and new ones of both formats with a snapshot."""
        golden = [GOLDEN / "0.1.0" / name for name in ("zarr-bfloat16", "webdataset-float16")]
        folders = [next(path for path in cache.iterdir() if path.is_dir()) for cache in golden]
        before, latent_store.SNAPSHOT_FROM_SHARDS = latent_store.SNAPSHOT_FROM_SHARDS, 2
        try:
            for format in ("zarr", "webdataset"):
                cache = self.place / f"store-{format}"
                job(cache, range(6), format=format)
                [made] = cache.iterdir()
                latent_store.LatentStore.record_failure(_open(made), BAD)
                add_dropped(Folder(made), [f"{number:032x}" for number in (77, 78)])
                write_note(made, Note(why="compact", aside=None, shards={"0": "0" * 64}))
                assert (made / "index.safetensors").is_file()
                folders.append(made)
        finally:
            latent_store.SNAPSHOT_FROM_SHARDS = before
        return [case_of(folder, under="store/") for folder in folders]

    def stores_with(self, *patterns: str) -> list[Case]:
        chosen = [case.only(lambda name: any(map(Path(name).match, patterns))) for case in self.stores]
        return [case for case in chosen if case.victims]

    @cached_property
    def stores_with_prompts(self) -> list[Case]:
        cases = []
        for case in self.stores[:2]:
            folder = self.place / "prompts"
            embedding = torch.randn(1, 3, 24)
            content = TextEmbeddings.of_rows(embedding, -embedding).to_bytes()
            name = str(prompt_file(folder, PROMPT).relative_to(folder))
            own = safetensors.numpy.save({"prompt": embedding.numpy()}, {"prompt": PROMPT})
            files = {"store/prompt.safetensors": content, f"store/{name}": own}
            cases.append(Case(case.files | files, tuple(files)))
        return cases

    @cached_property
    def lists(self) -> list[Case]:
        rows = [
            {"image": "a.png", "prompt": "a ball", "id": 1, "conversations": [{"from": "human", "value": "x"}]},
            {"image": "sub/c.png", "prompt": "it rolls, and falls", "id": "2"},
            {"image": "missing.png", "prompt": ""},
            {"image": "b.png", "prompt": "é"},
        ]
        table = [["image", "prompt", "more"], ["a.png", 'a "ball"', "1"], ["sub/c.png", "it rolls,\nfalls", ""]]
        files = {
            "list.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "list.json": json.dumps(rows, indent=1),
            "list.csv": "".join(",".join(_quoted(value) for value in row) + "\r\n" for row in table),
            "list.tsv": "".join("\t".join(value.replace("\n", " ") for value in row) + "\n" for row in table),
        }
        files["list.txt"] = "a.png\r\n\nsub/c.png\nmissing.png\n"
        contents = {name: text.encode() for name, text in files.items()}
        contents["packed.jsonl.gz"] = gzip.compress(contents["list.jsonl"], mtime=0)
        contents["packed.csv.bz2"] = bz2.compress(contents["list.csv"])
        return [Case({**PICTURES, name: content}, (name,)) for name, content in contents.items()]

    @cached_property
    def tars(self) -> list[Case]:
        cases = []
        for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
                for name, content in (*PICTURES.items(), ("n" * 90 + "/d.png", png(4)), ("x.json", b"{}")):
                    member = tarfile.TarInfo(name)
                    member.size, member.mtime = len(content), 12345.5 if format == tarfile.PAX_FORMAT else 12345
                    tar.addfile(member, io.BytesIO(content))
                if format != tarfile.USTAR_FORMAT:
                    link = tarfile.TarInfo("é" * 90 + ".png")
                    link.type, link.linkname = tarfile.SYMTYPE, "../" * 50 + "a.png"
                    tar.addfile(link)
            cases.append(Case({"x.tar": buffer.getvalue()}, ("x.tar",)))
        return cases

    @cached_property
    def tables(self) -> list[Case]:
        """Parquet and Arrow, of paths and of bytes, with questions in them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        questions = {
            "question": ["where?", "when?", "how?"],
            "answer": [0, 1, 0],
            "choices": [["left", "right"], ["now", "later"], ["so", "not"]],
            "id": ["q1", "q2", "q3"],
            "prompt": ["a", "b", ""],
        }
        pictures = [{"bytes": content, "path": name} for name, content in PICTURES.items()]
        tables = {
            "paths": pa.table({"image": list(PICTURES), **questions}),
            "bytes": pa.table({"image": pictures, **questions}),
            "blobs": pa.table({"blob": list(PICTURES.values())}),
        }
        cases = []
        for name, table in tables.items():
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd" if name == "bytes" else "none", row_group_size=2)
            cases.append(Case({**PICTURES, "t.parquet": buffer.getvalue()}, ("t.parquet",)))
            buffer = io.BytesIO()
            make = pa.ipc.new_file if name == "paths" else pa.ipc.new_stream
            with make(buffer, table.schema) as writer:
                writer.write_table(table)
            cases.append(Case({**PICTURES, "t.arrow": buffer.getvalue()}, ("t.arrow",)))
        return cases

    @cached_property
    def saved_data_sets(self) -> list[Case]:
        """Folders that `save_to_disk` writes."""
        import datasets

        rows = datasets.Dataset.from_dict({"image": list(PICTURES), "question": ["where?"] * 3, "answer": ["x"] * 3})
        rows.save_to_disk(self.place / "saved" / "one")
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(self.place / "saved" / "two")
        return [case_of(self.place / "saved" / name, "*.json", under="saved/") for name in ("one", "two")]

    @cached_property
    def patterns(self) -> list[Case]:
        texts = ("*.png", "**/*.png", "{a,b}.png", "[ab]*.p?g", "x-{000..003}.tar", "sub/**/../*.png", "a.png", ".")
        return [Case({**PICTURES, "pattern.txt": text.encode()}, ("pattern.txt",)) for text in texts]

    @cached_property
    def names(self) -> list[Case]:
        text = "\n".join(["a.png", "b.PNG", "sub/c.png", "é.png", "-rf.png", "x.tar", "y.jsonl", ".hidden.png", "a b"])
        return [Case({"names.txt": text.encode()}, ("names.txt",))]

    @cached_property
    def images(self) -> list[Case]:
        return [Case({"image.png": content}, ("image.png",)) for content in originals()]

    @cached_property
    def videos(self) -> list[Case]:
        import av

        frames = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), np.uint8)
        write_video(self.place / "v.mp4", frames, 8)
        contents = [(self.place / "v.mp4").read_bytes()]
        for format, codec, pixels in (("matroska", "mpeg4", "yuv420p"), ("avi", "mjpeg", "yuvj420p")):
            buffer = io.BytesIO()
            with av.open(buffer, "w", format=format) as container:
                stream = container.add_stream(codec, rate=8)
                stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode(None))
            contents.append(buffer.getvalue())
        return [Case({"video.mp4": content}, ("video.mp4",)) for content in contents]

    @cached_property
    def questions(self) -> list[Case]:
        own = {
            "id": "q1",
            "image": "a.png",
            "question": "where will it land?",
            "answer": "left",
            "type": "temporal",
            "choices": ["left", "right"],
            "split": "train",
            "scene": "s",
            "family": "drop",
            "about": "land",
            "pair": "p",
            "heuristic": "left",
            "shift": "",
            "future": "f.mp4",
            "prompt": "a",
            "before": [["a", "b"]],
            "image_sha256": "0" * 64,
        }
        turns = [
            *({"from": "system", "value": "be short"}, {"from": "human", "value": "<image>\nwhere?"}),
            *({"from": "gpt", "value": "left"}, {"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}),
        ]
        llava = [
            {"id": "l1", "image": "a.png", "conversations": turns},
            {"id": 2, "image": ["b.png"], "conversations": turns[1:3], "split": "test"},
            {"id": "l3", "image": ["a.png", "b.png"], "conversations": turns[1:3]},
            {"conversations": turns[1:3]},
        ]
        rows = [
            {"picture": "a.png", "question": "which?", "choices": ["x", "y"], "answer": 0, "index": 1},
            {"picture": "b.png", "question": "<image> and?", "choices": '{"A": "x", "B": "y"}', "answer": "(B)"},
            {"picture": {"bytes": None, "path": "c.png"}, "question": "so?", "answer": True, "index": 2.0},
        ]
        encoded = base64.b64encode(png() * 6).decode()
        lines = {
            "q.jsonl": [own, {**own, "id": "q2", "choices": None}, {"image": "b.png", "question": "?", "answer": "a"}],
            "llava.jsonl": llava,
            "rows.ndjson": rows,
        }
        files = {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in lines.items()}
        files["llava.json"], files["rows.json"] = json.dumps(llava, indent=2), json.dumps(rows)
        files["object.json"] = json.dumps({"version": 1, "annotations": rows})
        files["ids.json"] = json.dumps({"17": {**own, "answers": [{"answer": "left"}, "right"]}, "18": rows[0]})
        files["q.csv"] = 'image,question,answer,id\r\na.png,"where, now?",left,1\r\nb.png,"say ""x""",x,2\r\n'
        files["q.tsv"] = (
            f"index\timage\tquestion\tA\tB\tanswer\tcategory\n0\t{encoded}\twhich?\tred\tblue\tA\tcolour\n"
            "1\tb.png\tand?\t1\t2\tB\tcount\n"
        )
        return [Case({name: text.encode()}, (name,)) for name, text in files.items()]

    @cached_property
    def vpct(self) -> list[Case]:
        files = {f"vpct/sim_{number}_initial.png": png(number) for number in (1, 2)}
        results = {f"vpct/sim_{n}_results.json": json.dumps({"finalBucket": n, "t": [1]}).encode() for n in (1, 2, 3)}
        return [Case({**files, **results}, tuple(results))]

    @cached_property
    def trained(self) -> Path:
        """A language model, a store, questions, a whole run with evaluation and gates, and an interrupted training."""
        folder = lay_out(self.place / "trained", validation=3)
        quiet = Progress.silent()
        train(settings(folder, train_steps=2, out=folder / "run"), progress=quiet)
        evaluate(folder / "run", split="test", progress=quiet, device="cpu")
        compare_policies(folder / "run", parse_rule("static=0"), split="test", progress=quiet, device="cpu")
        stopped = settings(folder, train_steps=4, out=folder / "other", checkpoint_every=1)
        with suppress(Interrupted):
            train(stopped, progress=quiet, stop=StopAt(3))
        record = {"tensorboard": {"id": "0123", "told": 3, "name": "other-0123"}}
        (partial_of(folder / "other") / "tracker.json").write_text(json.dumps(record))
        return folder

    def run(self, *victims: str) -> list[Case]:
        return [case_of(self.trained / "run", *victims, under="run/")]

    def run_with_model(self, *victims: str) -> list[Case]:
        model = case_of(self.trained / "lm", under="lm/")
        return [Case(model.files | case.files, case.victims) for case in self.run(*victims)]

    def partial(self, *victims: str) -> list[Case]:
        return [case_of(partial_of(self.trained / "other"), *victims, under="other.partial/")]

    def language_model(self, *victims: str) -> list[Case]:
        return [case_of(save_mini_lm(self.place / "lm"), *victims, under="lm/")]

    @cached_property
    def worlds(self) -> list[Case]:
        one, other = save_mini_world(self.place / "world"), save_mini_wan(self.place / "wan")
        later = [save_mini_ti2v(self.place / "ti2v"), save_mini_two_stage(self.place / "two-stage")]
        later.append(save_mini_anyflow(self.place / "anyflow"))
        later.append(save_mini_cosmos3(self.place / "cosmos3"))
        shutil.copyfile(ROOT / "precompute" / "worldlet" / "weights" / "card.json", one / "card.json")
        later.append(save_mini_vjepa2(self.place / "jepa"))
        return [case_of(folder, under="world/") for folder in (one, other, *later)]

    def worlds_with(self, *patterns: str) -> list[Case]:
        return [case.only(lambda name: any(map(Path(name).match, patterns))) for case in self.worlds]

    @cached_property
    def configs(self) -> list[Case]:
        texts = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.toml"))]
        return [Case({"settings.toml": text}, ("settings.toml",)) for text in texts]

    @cached_property
    def studied(self) -> Study:
        from ..miniatures.study import save_mini_study

        place = self.place / "study"
        save_mini_study(place, train=8, test=8, ood=4)
        save_mini_lm(place / "lm")
        chosen = TrainConfig.model_validate(
            {
                "store": place / "rollouts",
                "futures": place / "futures",
                "questions": place / "questions.jsonl",
                "lm": str(place / "lm"),
                "train_steps": 1,
                "batch_size": 4,
                "lora_rank": 2,
                "patch": 2,
                "max_world_steps": 4,
                "device": "cpu",
            }
        )
        study = Study(arms=("steps0",), labels=(4,), seeds=1, settings=chosen, out=place / "out")
        run_study(study, jobs=1, progress=Progress.silent())
        return study

    def study_files(self, *victims: str) -> list[Case]:
        case = case_of(self.studied.out, *victims, under="study/")
        return [Case({name: case.files[name] for name in case.files if name.endswith(".json")}, case.victims)]

    @cached_property
    def outcomes(self) -> list[Case]:
        return [Case({"outcomes.json": json.dumps({f"test-{n}": n % 2 == 0 for n in range(6)}).encode()}, ("*",))]

    @cached_property
    def scenes(self) -> list[Case]:
        folder = self.place / "scenes"
        write_scenes(folder, splits={"train": 2}, families=("race",))
        return [case_of(folder, "*.jsonl", under="scenes/")]

    @cached_property
    def machines(self) -> list[Case]:
        log = ThroughputLog.load(self.place)
        log.note_rate(RECIPE, "a card", 1000, 3.5)
        log.note_batch(RECIPE, "a card", 8)
        log.save(self.place)
        content = log.path.read_bytes()
        return [Case({"machines.json": content}, ("machines.json",))]

    @cached_property
    def speeds(self) -> list[Case]:
        content = json.dumps({"a card; torch 2": {"bfloat16": 7.5e14, "float32": 3.1e14}})
        return [Case({"speeds.json": content.encode()}, ("speeds.json",))]

    @cached_property
    def jobs(self) -> list[Case]:
        events = [
            {"event": "begun", "inputs": "/in", "part": "1/2", "cache": "/c", "host": "node", "pid": 7, "slurm": "8_1"},
            {"event": "plan", "store": "/c/s", "todo": 9, "done": 3, "refused": 1},
            {"event": "started", "store": "/c/s", "workers": 2, "nodes": 1, "ready_s": 4.0},
            {"event": "shard", "written": 4, "elsewhere": 0, "done": 4},
            {"event": "alive", "done": 4, "made": 2, "workers": 2, "worker_hours": 0.5, "gpu_hours": 0.25},
            {"event": "failure", "reason": "decode"},
            {"event": "finished", "store": "/c/s", "reasons": {"decode": 1}},
        ]
        content = "".join(json.dumps({"time": 1e9 + at, **event}) + "\n" for at, event in enumerate(events)).encode()
        pointer = json.dumps({"event": "elsewhere", "file": "/nowhere", "cache": "/c", "host": "node"}).encode() + b"\n"
        half = content[: len(content) // 2]
        files = {"jobs/a.jsonl": content, "jobs/b.jsonl": half, "jobs/elsewhere-1.jsonl": pointer}
        return [Case(files, tuple(files))]

    @cached_property
    def lock_files(self) -> list[Case]:
        locked = self.place / "locked.json"
        with lock_file.held(locked, busy="busy", reason="no locks here"):
            content = (self.place / "locked.json.lock").read_bytes()
        return [Case({"locked.json.lock": content}, ("locked.json.lock",))]

    @cached_property
    def hash_caches(self) -> list[Case]:
        folder = self.place / "hashed"
        folder.mkdir()
        (folder / "a.png").write_bytes(png())
        os.utime(folder / "a.png", (1, 1))
        cache = HashCache.load(folder / "cache", Path("place"), "image")
        cache._started_ns += 10**12  # else the file is too new to be kept
        list_inputs(folder, "rollout", index=cache)
        cache.save()
        return [case_of(folder / "cache", under="cache/")]

    @cached_property
    def gguf_files(self) -> list[Case]:
        def text(value: str) -> bytes:
            return struct.pack("<Q", len(value)) + value.encode()

        words = b"".join(map(text, ("<bos>", "ball", "left")))
        settings = [
            text("general.architecture") + struct.pack("<I", 8) + text("gemma3"),
            text("gemma3.block_count") + struct.pack("<II", 4, 2),
            text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + words,
            text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0, 1, 2),
        ]
        tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 3, 0, 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(settings))
        return [Case({"model.gguf": head + b"".join(settings) + tensor + bytes(64)}, ("model.gguf",))]

    @cached_property
    def keys(self) -> list[Case]:
        text = "\n".join(key_of_bytes(content) for content in PICTURES.values())
        return [Case({"keys.txt": text.encode()}, ("keys.txt",))]


def _open(store: Path) -> Any:
    from theworld.pipeline.store.folder import open_store

    return open_store(store)


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if any(mark in value for mark in '",\n') else value
