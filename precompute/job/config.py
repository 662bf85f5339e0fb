"""The settings of one precompute job. Each is a field and a flag. Loads no torch."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...pipeline.accelerators import Accelerator, find_accelerator
from ...pipeline.config import DECIDES_LATENTS, DEFAULT_CACHE, HOW_IT_RUNS, setting, settings_table
from ...pipeline.errors import ConfigError
from ...pipeline.files.hub.transfers import is_hub_id
from ...pipeline.files.places.local import LocalPath
from ...pipeline.files.places.store_paths import StorePath, is_bucket
from ...pipeline.files.remote import InputPath
from ...pipeline.latents.kinds import KINDS, KindName, Views
from ...pipeline.latents.recipe import Fit, Solver, StoredDtype, check_meaning, parse_size
from ...pipeline.machine import DeviceName
from ...pipeline.messages import command
from ...pipeline.store.formats import StoreFormat
from ..inputs.rows.fields import seconds_of
from ..worlds.builtin import BUILT_IN
from ..worlds.cosmos.guardrail import Guardrail
from ..worlds.network.offloading import Offload
from .setting_texts import check_device, number_text, price_text, rate_text, read_part

_running = partial(setting, panel=HOW_IT_RUNS)
_of_recipe = partial(setting, panel=DECIDES_LATENTS)

HIDDEN_WIDTH = 64
"""Channels of hidden states: as many bytes as a rollout. The second study (docs/benchmark.md) preferred them to 16."""
_OF_WORLD = "the world model's"
_WRITTEN = "a file may not say where to write"
_MODELS = [place for family in BUILT_IN.values() for place in family.names.values() if is_hub_id(place)]


@settings_table("precompute")
class PrecomputeConfig(BaseModel):
    """The settings of `theworld precompute`. None takes the default of the world model."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    # what is rolled out or encoded, and where it goes
    images: Annotated[
        InputPath | None,
        setting(
            "Folder, image, quoted glob; list (.jsonl .csv .json .parquet), tars, save_to_disk folder, hf:ORG/NAME; or "
            "any of them at s3://, gs://, az://, hf://datasets/ORG/NAME.",
            default="scenes of the worldlet, made in the cache",
            argument=True,
            place=True,
        ),
    ] = None
    """Where inputs are, images or for kind frames videos: docs/inputs.md."""
    cache: Annotated[
        StorePath,
        setting("Folder of stores; a path, or s3://BUCKET/FOLDER, gs://…, az://….", text=True, typed_only=_WRITTEN),
    ] = DEFAULT_CACHE
    """Of a bucket, this machine keeps its own notes (jobs, digests, speeds) in its user's cache."""
    column: Annotated[
        str | None,
        _running(
            "Column of a list or table that names the inputs; for tars, the extension.", default="image, video, path, …"
        ),
    ] = None
    image_root: Annotated[
        LocalPath | None,
        _running(
            "Folder that the paths in a list are relative to.",
            names=["--media-root"],
            default="the list's own",
            typed_only="with a list it decides which of your files are read",
        ),
    ] = None
    """Of images and of videos."""
    start_field: Annotated[str | None, _running("Column of a list with the start of a video's clip.")] = None
    """Seconds, or such as 0:12.5; or a pair, of start and end."""
    end_field: Annotated[str | None, _running("Column of a list with the latest end of a video's clip.")] = None
    anchor: Annotated[
        str | None,
        _running(
            "Moment of the videos, in seconds, or the column that holds it. Kinds that take images use the frame there."
        ),
    ] = None
    """A kind of videos takes the clip that begins there, so that both have the same keys."""
    limit: Annotated[int | None, Field(ge=1), _running("Use only this many inputs, the first ones.", default="all")] = (
        None
    )
    part: Annotated[
        str | None,
        _running("i/n: only the i-th of n parts of the inputs; n jobs fill one store.", default="all"),
    ] = None
    """Which part an input is in follows from its content, so it stays there as inputs are added."""
    scenes: Annotated[int, Field(ge=3), _running("Number of scenes to make if no images are given.")] = 900
    """Every third is a test scene."""

    # these decide the latents: they enter the recipe
    kind: Annotated[
        KindName,
        _of_recipe(
            "rollout: images and their predicted future. samples: several futures. continuation: videos and their "
            "future. frames: real videos, encoded. views: crops of images. posterior: mean and log-variance of images. "
            "hidden: images and their future inside the network, before it is denoised."
        ),
    ] = "rollout"
    steps: Annotated[
        int | None,
        Field(ge=0),
        _of_recipe("Future latent frames per image; T = 1 + steps.", default="8; 13 views, 1 posterior"),
    ] = None
    """Of each draw, for kind samples."""
    world: Annotated[
        str | None,
        _of_recipe("World model: a Hub id, a folder, or a name.", default="the embedded worldlet", models=_MODELS),
    ] = None
    size: Annotated[str | None, _of_recipe("HEIGHTxWIDTH in pixels.", default=_OF_WORLD)] = None
    fit: Annotated[Fit, _of_recipe("cover, pad or stretch.")] = "cover"
    stride: Annotated[int, Field(ge=1), _of_recipe("Keep every stride-th latent frame.")] = 1
    denoise_steps: Annotated[
        int | None, _of_recipe("Diffusion steps.", names=["--num-inference-steps"], default=_OF_WORLD)
    ] = None
    solver: Annotated[
        Solver | None,
        _of_recipe("euler, or 2ab (second order), if the world model offers a choice.", default=_OF_WORLD),
    ] = None
    guidance: Annotated[float, _of_recipe("Classifier-free guidance; 1 is off.", names=["--guidance-scale"])] = 1.0
    prompt: Annotated[str | None, _of_recipe("Text that conditions the rollout; needs --guardrail.")] = None
    negative_prompt: Annotated[str | None, _of_recipe("Text to steer away from; needs guidance above 1.")] = None
    prompt_field: Annotated[str | None, _of_recipe("Column of a list with a prompt for each input.")] = None
    seed: Annotated[int, _of_recipe("Seed of the noise.")] = 0
    draws: Annotated[
        int | None,
        Field(ge=1),
        _of_recipe("For kind samples: number of futures, --steps each.", names=["--num-samples"], default="4"),
    ] = None
    observed_frames: Annotated[int, Field(ge=1), _of_recipe("For kind continuation: number of video frames shown.")] = 5
    clip_fps: Annotated[
        str | None,
        _of_recipe("Frames a second of a clip; 'stored' takes every frame of the file.", default=_OF_WORLD),
    ] = None
    """A number, `card` (the world model's) or `stored`."""
    fps: Annotated[
        float | None,
        Field(gt=0),
        _of_recipe("Frame rate given to the world model, if it accepts one.", default=_OF_WORLD),
    ] = None
    views: Annotated[Views, _of_recipe("For kind views: pyramid or zoom.")] = "pyramid"
    chunk_context: Annotated[
        int,
        Field(ge=0),
        _of_recipe(
            "Clips beyond the world model's window: predict in chunks that begin with 1 or 5 decoded frames. 0 refuses "
            "such clips, except of autoregressive models."
        ),
    ] = 0
    hidden_block: Annotated[
        int | None,
        Field(ge=1),
        _of_recipe(
            "For kind hidden: take the output of this block, counted from 1.", default="two thirds of the depth"
        ),
    ] = None
    hidden_sigma: Annotated[
        float | None,
        Field(gt=0),
        _of_recipe(
            "For kind hidden: noise level of the future frames, in the model's scale.", default="its first level"
        ),
    ] = None
    """Cosmos-Predict2: up to 80. Models along a flow: up to 1."""
    hidden_width: Annotated[
        int | None,
        Field(ge=0),
        _of_recipe("For kind hidden: project tokens to this many channels; 0 keeps all.", default=str(HIDDEN_WIDTH)),
    ] = None
    compute_dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        _of_recipe("Precision of the transformer: float32 or bfloat16.", default=_OF_WORLD),
    ] = None
    dtype: Annotated[StoredDtype, _of_recipe("Precision of the store: float16, bfloat16 or float32.")] = "float16"

    # these do not
    guardrail: Annotated[
        Guardrail | None,
        _running(
            "Filter that checks the prompts: cosmos (NVIDIA's), or external (your own).",
            typed_only="it is your word that somebody checks the prompts",
        ),
    ] = None
    rehash: Annotated[bool, _running("Read and hash every input again, even if it looks unchanged.")] = False
    device: Annotated[
        DeviceName | str,
        _running('auto, cpu or cuda. With --dry-run also the name of a GPU to plan for, such as "H100 80GB".'),
    ] = "auto"
    workers: Annotated[
        int | None, Field(ge=1), _running("Number of workers (Ray actors).", default="one per GPU, or per core")
    ] = None
    batch_size: Annotated[
        int | None,
        Field(ge=1),
        _running("Images rolled out together.", default="by tokens and memory: up to 8, on a GPU 16"),
    ] = None
    decoders: Annotated[
        int | None,
        Field(ge=1, le=64),
        _running("Processes that decode inputs, for each worker.", default="1; to encode only, by cores, up to 8"),
    ] = None
    """Each has the limits of one input; order and bits are the same with any number."""
    compile: Annotated[
        bool, _running("Compile the world model's blocks: one minute at the start, then faster. Changes rounding only.")
    ] = False
    offload: Annotated[
        Offload | None,
        _running(
            "For a small GPU: weights stay in main memory, pinned or mapped, two blocks on the GPU. Same latents.",
            default="all weights on the GPU",
        ),
    ] = None
    format: Annotated[StoreFormat | None, _running("Format of a new store: zarr or webdataset.", default="zarr")] = None
    """A store that exists keeps its own."""
    shard_size: Annotated[
        int | None,
        Field(ge=1, le=65536),
        _running(
            "Most samples in a shard; a new store reserves as many rows a shard.", default="up to 256, 64 MB, 3 minutes"
        ),
    ] = None
    in_process: Annotated[bool, _running("Run one worker in this process, without Ray.")] = False
    address: Annotated[
        str | None,
        _running(
            "HOST:PORT of a Ray cluster to join; it must require a token.",
            default="Ray on this machine alone",
            typed_only="your Ray token is sent there, and code that comes back is run",
        ),
    ] = None
    nodes: Annotated[
        int | None,
        Field(ge=1),
        _running("Wait up to 5 minutes until this many nodes have joined the cluster.", default="those that are there"),
    ] = None
    events: Annotated[
        LocalPath | None,
        _running(
            "Append one JSON line per event to this file; `theworld status` reads it.",
            default="one in jobs/ of the cache",
            typed_only=_WRITTEN,
        ),
    ] = None
    retry_failed: Annotated[bool, _running("Try failed inputs again.")] = False
    max_bad: Annotated[int, Field(ge=0), _running("Inputs that may fail before the exit code is 3.")] = 0
    dry_run: Annotated[bool, _running("Print the plan and stop; makes no latents.")] = False
    memory: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        _running("Plan for a GPU with this many GiB.", default="what the GPU has; no limit on a CPU"),
    ] = None
    """Limits the batch where none is named, as an estimate says; see worlds/memory.py."""
    gpu_hour_price: Annotated[
        str | None,
        _running(
            "Price of a GPU for an hour, such as 2.50 or '$2.50'; the plan then shows the cost of the run.",
            default="none",
        ),
    ] = None
    """Any currency; without GPUs, of a worker's hour."""

    @model_validator(mode="after")
    def _size_is_readable(self) -> PrecomputeConfig:
        if self.size is not None:
            try:
                parse_size(self.size)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    @field_validator("clip_fps", mode="before")
    @classmethod
    def _rate_is_readable(cls, value: object) -> object:
        return rate_text(value)

    @field_validator("anchor", mode="before")
    @classmethod
    def _anchor_is_text(cls, value: object) -> object:
        return number_text(value)

    @field_validator("gpu_hour_price", mode="before")
    @classmethod
    def _price_is_readable(cls, value: object) -> object:
        return price_text(value)

    @model_validator(mode="after")
    def _device_is_known(self) -> PrecomputeConfig:
        check_device(self.device, is_plan=self.dry_run)
        return self

    @property
    def own_device(self) -> DeviceName:
        """Where this run computes."""
        return cast(DeviceName, self.device) if self.accelerator is None else "auto"

    @property
    def accelerator(self) -> Accelerator | None:
        """What is planned for, if it is named."""
        return None if self.device in get_args(DeviceName) else find_accelerator(self.device)

    @field_validator("part")
    @classmethod
    def _part_is_readable(cls, text: str | None) -> str | None:
        if text is not None:
            read_part(text)
        return text

    @property
    def own_part(self) -> tuple[int, int]:
        """(i, n): this job takes the i-th of n parts, from 1."""
        return read_part(self.part) if self.part else (1, 1)

    @property
    def start(self) -> tuple[float | None, str | None]:
        """The moment of every video, or the column that holds that of each."""
        if self.anchor is None:
            return None, self.start_field
        seconds = seconds_of(self.anchor)
        return (None, self.anchor) if seconds is None else (seconds, None)

    @model_validator(mode="after")
    def _one_start(self) -> PrecomputeConfig:
        if self.anchor is not None and self.start_field is not None:
            raise ValueError("anchor and start_field both say where a video is read; leave one of them out")
        if self.images is None and (self.anchor or self.start_field or self.end_field):
            raise ValueError("anchor, start_field and end_field are of videos, and none are given")
        return self

    @model_validator(mode="after")
    def _runs_in_one_place(self) -> PrecomputeConfig:
        if self.in_process and self.address is not None:
            raise ValueError("in_process works here and address elsewhere; choose one")
        if self.nodes is not None and self.address is None:
            raise ValueError("nodes are those of a cluster; name it with address")
        if self.in_process and (self.workers or 1) > 1:
            raise ValueError(f"in_process is one worker, and workers says {self.workers}; choose one")
        return self

    @model_validator(mode="after")
    def _scenes_are_made(self) -> PrecomputeConfig:
        if self.images is not None and "scenes" in self.model_fields_set:
            raise ValueError("scenes are made where no images are given, and these are; leave one of them out")
        if self.images is None and is_bucket(self.cache):
            raise ValueError(
                f"scenes are made in a folder, and {self.cache} is a bucket. Make them with `theworld scenes FOLDER`, "
                f"then `{command('precompute', 'FOLDER/images', '--cache', str(self.cache))}`"
            )
        return self

    @model_validator(mode="after")
    def _something_is_compiled(self) -> PrecomputeConfig:
        if self.compile and (self.steps == 0 or not KINDS[self.kind].predicts):
            raise ValueError("compile is of the network that predicts, and nothing is predicted here; leave it out")
        return self

    @model_validator(mode="after")
    def _something_is_offloaded(self) -> PrecomputeConfig:
        if self.offload is not None and (self.steps == 0 or not KINDS[self.kind].predicts):
            raise ValueError("offload is of the network that predicts, and nothing is predicted here; leave it out")
        if self.offload is not None and self.compile:
            raise ValueError("compile takes blocks that stay on the GPU, and offload moves them; leave one of them out")
        return self

    @model_validator(mode="after")
    def _blocks_stay_as_they_are(self) -> PrecomputeConfig:
        if KINDS[self.kind].is_hidden and (self.compile or self.offload is not None):
            name = "compile" if self.compile else "offload"
            raise ValueError(f"{name} is not for hidden states: their forward ends behind a block; leave it out")
        return self

    @model_validator(mode="after")
    def _kind_has_all_that_is_said(self) -> PrecomputeConfig:
        prompts = {"prompts": None if self.prompt_field is None else "sample"}
        check_meaning(self.kind, self.model_dump() | prompts)
        return self
