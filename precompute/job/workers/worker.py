"""A worker: opens the store and the world model once, then makes and commits one shard of latents at a time.

It does not depend on Ray: it gives the same result in this process and in a Ray actor.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ....pipeline.device_memory import PeakMemory
from ....pipeline.errors import ImageError, WorldModelError
from ....pipeline.failures import FailureReason
from ....pipeline.latents.keys import key_of_sample
from ....pipeline.machine import device_name, is_out_of_memory
from ....pipeline.messages import format_bytes
from ....pipeline.store.folder import open_to_add
from ....pipeline.store.ledger import Failure
from ...inputs.listing.inputs import Sample
from ...inputs.sandbox import shared_decoder
from ...rollout.batch import latents_of_batch, machine_facts
from ...rollout.kind import Loaded
from ...rollout.kinds import KINDS, at_moments
from ...worlds.builtin import WEIGHTS
from ...worlds.network.compiling import compile_world
from ...worlds.network.offloading import Offload, offload_world
from ...worlds.prompts import load_prompt_embeddings
from ...worlds.registry import load_world
from ...worlds.text_embeddings import TextEmbeddings
from ..planning.plan import MOST_TASK_S
from ..planning.throughput import ANY_DEVICE
from ..signals import held
from .decode_ahead import decode_ahead, default_decoders
from .ray_counts import Counts, LocalCounts, RayCounts
from .ray_local import StopSign
from .write_behind import WriteBehind


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSetup:
    """What a worker needs to start; plain values only, they cross process borders."""

    world_folder: str | None
    """None is the embedded world of the package the worker runs, which on another machine may be elsewhere."""
    store: str
    """Its path, or its URL: a worker opens it with the credentials of its own machine."""
    device: str
    batch_size: int
    world_name: str | None = None
    """For people; recorded beside each shard, as is `fps`."""
    fps: float | None = None
    """Video frames per second of the world model's training clips: what its steps are in seconds."""
    decoders: int | None = None
    """Processes that decode inputs; None is by kind and `cores`."""
    cores: int = 1
    """Of the machine, for each worker there."""
    threads: int | None = None
    """CPU threads of torch; None leaves them as they are."""
    text: str | None = None
    """Name, in the store, of the file with the embeddings of the recipe's prompt."""
    guardrail: str | None = None
    """What checked the prompts; recorded beside each shard."""
    umask: int | None = None
    """Of the files it writes; None leaves it as it is."""
    fitted: Mapping[str, int] = field(default_factory=dict[str, int])
    """Device, by its model -> the batch that fitted there where a larger one did not."""
    compile: bool = False
    """Whether the world model's blocks are compiled."""
    offload: Offload | None = None
    """How the weights of the world model's network stay in main memory; None puts them on the device."""
    stop_sign: str | None = None
    """Name of the sign by which the driver of a Ray job ends its workers' batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """The result of one shard of samples."""

    written: int
    undone: int = 0
    """The last so many samples of the task, not begun: the shard had taken its time, or the job is to end."""
    elsewhere: int = 0
    """Made here as well, but another job had committed all of them before."""
    failures: tuple[Failure, ...] = ()
    bytes_written: int = 0
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Wall seconds by phase: decode (waited for), the kind's own work, write (waited for)."""
    unrated_s: float = 0.0
    """Of these, those that say nothing of the rate: tries that ran out of memory, and the start of the decoder."""
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """Note about inputs that were used -> how many."""
    batch_size: int
    batches: int = 0
    device: str = ""
    """Model of the device that made it."""
    peak_bytes: int | None = None
    """The most that tensors of this worker took on its GPU so far; None without one."""


_ABSENT = {FailureReason.MISSING, FailureReason.NOT_A_FILE, FailureReason.CHANGED}


class Worker:
    """Makes the latents of shards of samples and commits them itself; returns receipts, never latents."""

    _stop_sign: StopSign | None = None
    counts: Counts
    """Of the batches of the task in hand."""

    def __init__(self, setup: WorkerSetup) -> None:
        if setup.umask is not None:
            os.umask(setup.umask)
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        started = time.monotonic()
        self._store = open_to_add(setup.store)
        self._recipe = self._store.recipe
        self._kind = KINDS[self._recipe.kind]
        self._decoder = shared_decoder()
        self._decoders = setup.decoders or default_decoders(self._recipe, setup.cores)
        self._decoder.start(self._decoders, cores=setup.cores)  # while the weights load
        text = TextEmbeddings.load_from(self._store.place, setup.text) if setup.text else None
        self._negative = None if text is None else text.negative
        folder = Path(setup.world_folder) if setup.world_folder else WEIGHTS
        self._peak = PeakMemory(setup.device)
        try:
            device = setup.device if setup.offload is None else "cpu"
            self._world = load_world(folder, device=device, compute_dtype=self._recipe.compute_dtype, text=text)
            if setup.offload is not None:
                offload_world(self._world, setup.device, setup.offload)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise WorldModelError(_no_room(folder, setup, error)) from error
        if setup.compile:
            compile_world(self._world, setup.device)
        self._is_compiled = setup.compile
        self._device = setup.device
        self._world_name, self._fps = setup.world_name, setup.fps
        self._guardrail = setup.guardrail
        self._device_name = device_name(setup.device, torch.get_num_threads())
        self._batch_size = min(setup.batch_size, setup.fitted.get(self._device_name, setup.batch_size))
        self._made_any = False
        self._unrated_s = 0.0
        """Of the task in hand."""
        self._decoder_has_started = False
        self.counts = LocalCounts()
        if setup.stop_sign is not None:
            self._stop_sign = StopSign(setup.stop_sign)
            self.counts = RayCounts(setup.stop_sign)
        self._load_s = time.monotonic() - started

    def load_s(self) -> float:
        """Seconds it took to load the world model; answering at all says that the worker is ready."""
        return self._load_s

    def check_in(self, sample: Sample) -> dict[str, str]:
        """Where this worker runs, having read an input: on another machine, its folders may not be there.

        Raises:
            ImageError: the input cannot be read here.
            StoreError: as `try_to_write`.
        """
        self.try_to_write()
        try:
            self._load(sample)
        except ImageError as error:
            if error.reason in _ABSENT:  # an input that is there and broken is broken everywhere
                raise
        return {"host": socket.gethostname(), "package": str(Path(__file__).parents[2]), "device": self._device_name}

    def try_to_write(self) -> None:
        """Make an object in the store's bucket and remove it again; nothing where the store is in a folder.

        Raises:
            StoreError: this machine's credentials do not allow that, or it does not reach the bucket.
        """
        if not self._store.place.is_local:
            self._store.place.now()

    def process(
        self,
        samples: Sequence[Sample],
        shard_number: int | None = None,
        fitted: Mapping[str, int] | None = None,
    ) -> Receipt:
        """Decode, roll out or encode, and commit up to a shard of samples.

        The next batches are decoded, and the last one is written, while the world model is at work.
        After a batch that ends when the shard has taken its time, or when the job is to end, what is made is committed,
        and the rest is left undone. The shard gets `shard_number` where that is free. `fitted` is what all workers have
        learned of their devices.
        A sample that cannot be decoded, or whose latents are not finite, is left out and reported; the rest commits.

        Raises:
            StoreError, OSError: the store cannot be written.
            Exception: whatever the world model raises that is not about memory; the job isolates the sample behind it.
        """
        seconds = {"decode": 0.0, self._kind.phase: 0.0, "write": 0.0}
        notes: Counter[str] = Counter()
        rates: Counter[str] = Counter()
        undone = 0
        self._unrated_s = 0.0
        for device in (self._device_name, ANY_DEVICE):
            self._batch_size = min(self._batch_size, (fitted or {}).get(device, self._batch_size))
        began = time.monotonic()
        first_key = samples[0].key
        if self._is_stopped():  # it lay ready behind the task in hand
            samples, undone = (), len(samples)
        decoding = decode_ahead(
            samples, self._load, lambda: self._batch_size, self._decoders, self._load_fetched, self._read
        )
        with (
            held() as is_interrupted,
            self._store.new_shard(shard_number) as shard,
            closing(decoding) as decoded,
            WriteBehind(shard, partial(self.counts.put, first_key)) as behind,
        ):
            for batch, waited in decoded:
                seconds["decode"] += waited
                if not self._decoder_has_started:
                    self._unrated_s, self._decoder_has_started = waited, True
                started = time.monotonic()
                latents = self._latents(batch.samples, [loaded.pixels for loaded in batch.loaded])
                seconds[self._kind.phase] += time.monotonic() - started
                notes.update(note for loaded in batch.loaded for note in loaded.notes)
                rates.update(f"{loaded.rate:g}" for loaded in batch.loaded if loaded.rate is not None)
                behind.add(batch, latents)
                if is_interrupted() or self._is_stopped() or time.monotonic() - began > MOST_TASK_S:
                    break
            behind.finish()
            seconds["write"] = behind.waited_s
            written, failures = behind.written, behind.failures
            undone += len(samples) - written - len(failures)
            started = time.monotonic()
            record = shard.commit(self._facts(seconds, notes, rates)) if written else None
            seconds["write"] += time.monotonic() - started
        return Receipt(
            written=0 if record is None else written,
            undone=undone,
            elsewhere=written if record is None else 0,
            failures=tuple(failures),
            bytes_written=record.bytes if record is not None else 0,
            seconds=seconds,
            unrated_s=self._unrated_s,
            notes=dict(notes),
            batch_size=self._batch_size,
            batches=behind.batches,
            device=self._device_name,
            peak_bytes=self._peak.measured(),
        )

    def _is_stopped(self) -> bool:
        return self._stop_sign is not None and self._stop_sign.is_up()

    def _read(self, sample: Sample) -> bytes:
        kind = self._kind if sample.window is None else at_moments(self._kind)
        return sample.location.read(kind.max_bytes)

    def _load(self, sample: Sample) -> Loaded:
        return self._decode(sample, self._read(sample))

    def _load_fetched(self, sample: Sample, fetched: Future[bytes]) -> Loaded:
        return self._decode(sample, fetched.result())

    def _decode(self, sample: Sample, content: bytes) -> Loaded:
        clip = () if sample.start_s is None else (sample.start_s,)
        if key_of_sample(content, sample.prompt, *clip) != sample.key:
            raise ImageError(
                FailureReason.CHANGED, f"{sample.source} changed while the job ran; run again for what it is now"
            )
        return self._decoder.load(content, self._recipe, self._world.spec, sample.source, sample.window)

    def _latents(self, samples: list[Sample], pixels: list[Tensor]) -> list[Tensor | None]:
        """(C, T, H, W) of each on the CPU; None where one did not fit alone, though others did.

        Out of memory halves the batch, and later batches stay halved.
        """
        results: list[Tensor | None] = []
        while len(results) < len(samples):
            size = self._batch_size
            part = slice(len(results), len(results) + size)
            keys, text = [sample.key for sample in samples[part]], self._text_of(samples[part])
            started = time.monotonic()
            try:
                latents = latents_of_batch(
                    self._kind,
                    self._world,
                    pixels[part],
                    keys,
                    self._recipe,
                    size,
                    text=text,
                    sample_shape=self._store.sample_shape,
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or (size == 1 and not self._made_any):
                    raise
                latents = None  # freeing waits for the end of this block: the error holds on to the frames it is of
            if latents is not None:
                self._made_any = True
                results.extend(latents)
            elif size == 1:
                results.append(None)
            else:
                self._batch_size = size // 2
            if latents is None:
                if self._device.startswith("cuda"):
                    torch.cuda.empty_cache()
                self._unrated_s += time.monotonic() - started
        return results

    def _text_of(self, samples: Sequence[Sample]) -> TextEmbeddings | None:
        """The samples' own prompts, where they have them."""
        if self._recipe.prompts == "recipe":
            return None
        return load_prompt_embeddings(self._store.place, [sample.prompt or "" for sample in samples], self._negative)

    def _facts(self, seconds: dict[str, float], notes: Counter[str], rates: Counter[str]) -> dict[str, object]:
        """Recorded beside the shard, never hashed: who made it, of what inputs, with what, at what cost."""
        return {
            **machine_facts(self._device, compiled=self._is_compiled),
            "batch_size": self._batch_size,
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
            "world": {"name": self._world_name, "fps": self._fps},
            **({"notes": dict(sorted(notes.items()))} if notes else {}),
            **({"video_rates": dict(sorted(rates.items()))} if rates else {}),
            **({} if self._guardrail is None else {"guardrail": self._guardrail}),
        }


def _no_room(folder: Path, setup: WorkerSetup, error: BaseException) -> str:
    """What to say and do where the weights do not fit."""
    device, offload = setup.device, setup.offload
    size = format_bytes(sum(path.stat().st_size for path in folder.glob("*/*.safetensors")))
    if offload == "pinned" and not isinstance(error, torch.OutOfMemoryError):  # that is of a GPU's memory
        where = "pinned main memory"
        advice = "Use --offload mapped, which leaves them in their files, or fewer --workers"
    elif device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        where = f"{torch.cuda.get_device_name(device)}, of whose {format_bytes(total)} {format_bytes(free)} are free"
        advice = "Use a GPU with more memory or a smaller world model, and see with nvidia-smi what else is on this one"
        if offload is None:
            advice = f"Use --offload pinned, which leaves them in main memory. {advice}"
    else:
        where, advice = "main memory", "Use fewer --workers, a machine with more memory, or a smaller world model"
    return f"the weights in {folder} ({size}) do not fit into {where}. {advice}"
