"""The family of NVIDIA's AnyFlow FAR, which goes on chunk by chunk from what it keeps. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....pipeline.errors import ConfigError
from ....pipeline.latents.recipe import Recipe
from ..arithmetic import Operations
from ..blocks import Blocks, diffusers_blocks
from ..family import INDEX, Card, Configs, Settings, TextEncoder, TextForm, class_of, mismatched
from ..wan.families import InWanLatents, clean_prompt
from ..wan.space import latent_spec_of
from .chunks import CHUNK_FRAMES, chunks_flops

if TYPE_CHECKING:
    from ....pipeline.latents.world_model import WorldModel
    from ..text_embeddings import TextEmbeddings

_VIDEO_FRAMES = 4 * CHUNK_FRAMES
"""That a chunk packs."""

_MAX_PATCH, _MAX_RECENT, _MAX_POSITIONS = 16, 16, 2**16
"""Of the networks we know: 4, 3 and 1,024. A table is made of as many positions."""
_WORK = "anyflow-far-1.3b and anyflow-far-14b go on from an image"
_PIPELINES = ("AnyFlowFARPipeline", "FARWanAnyFlowPipeline")
_TRANSFORMERS = ("AnyFlowFARTransformer3DModel", "FAR_Wan_Transformer3DModel")
_SCHEDULERS = ("FlowMapEulerDiscreteScheduler", "FlowMapDiscreteScheduler")
"""Each as diffusers calls it, and as NVIDIA's own code does, by which the folders on the Hub were written."""
_TEXT_TO_VIDEO = ("AnyFlowPipeline", "WanAnyFlowPipeline", "AnyFlowTransformer3DModel")
_OTHERS: Mapping[str, str] = {
    "Helios": "whose chunks are decoded each alone, so that together they are no clip of latents, and whose first "
    "frame is noised",
    "SkyReelsV2DiffusionForcing": "which keeps no state: it computes each window anew, and its latents depend on the "
    "clip's length",
}
"""Beginnings of the names of other pipelines that go on, and why these are of no family."""


class AnyFlowFamily(InWanLatents):
    title = "NVIDIA AnyFlow FAR"
    parts: tuple[str, ...] = ("vae", "transformer", "scheduler")
    text: TextForm | None = TextEncoder(
        class_name="UMT5EncoderModel",
        empty_is_free=False,  # its text projection has a bias
        guardrail=False,
        clean=clean_prompt,
    )
    settings = Settings(
        levels="linear, shifted as its folder's scheduler says",
        guidance="uncond + g (cond - uncond); it was distilled to need none",
    )
    card = Card(height=480, width=832, denoise_steps=4, window=21, fps=16.0)
    """Source: `AnyFlowFARPipeline`, its defaults and its example."""
    engine = 1
    names: Mapping[str, str] = {
        "anyflow-far-1.3b": "nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers",
        "anyflow-far-14b": "nvidia/AnyFlow-FAR-Wan2.1-14B-Diffusers",
    }

    def mismatch(self, configs: Configs) -> str | None:
        index, transformer = configs.get(INDEX, {}), configs.get("transformer", {})
        name = class_of(index)
        for begin, reason in _OTHERS.items():
            if name.startswith(begin):
                return f"it is a {name}, {reason}; {_WORK}"
        if name in _TEXT_TO_VIDEO or class_of(transformer) in _TEXT_TO_VIDEO or _is_text_to_video(transformer):
            return f"it is AnyFlow's text-to-video model, which makes a clip at once and takes no image; {_WORK}"
        wanted = {INDEX: _PIPELINES, "vae": ("AutoencoderKLWan",), "transformer": _TRANSFORMERS}
        return (
            mismatched(configs, wanted)
            or _mismatch_of_network(configs)
            or mismatched(configs, {"scheduler": _SCHEDULERS, "text_encoder": ("umt5",), "tokenizer": ()})
        )

    def check(self, recipe: Recipe) -> None:
        """As `WorldFamily` has it: a video it is shown fills whole chunks."""
        first_predicted = recipe.traits.first_predicted_frame(recipe) or 1
        if (first_predicted - 1) % _VIDEO_FRAMES:
            near = 1 + _VIDEO_FRAMES * round((first_predicted - 1) / _VIDEO_FRAMES)
            raise ConfigError(
                f"--observed-frames {first_predicted}: {self.title} goes on behind whole chunks of {CHUNK_FRAMES} "
                f"latent frames, so it can be shown 1 + a multiple of {_VIDEO_FRAMES} video frames. "
                f"Choose --observed-frames {near}"
            )

    def size_multiple(self, configs: Configs) -> int:
        """Of the large patches that the past is seen in: what fills none would be cut off."""
        return self.latent_spec(configs).spatial_stride * configs["transformer"]["compressed_patch_size"][1]

    def most_frames(self, configs: Configs) -> int:
        """As `KeepsState` has it: whole chunks for which the network has positions."""
        positions = configs["transformer"]["rope_max_seq_len"]
        return 1 + (positions - 1) // CHUNK_FRAMES * CHUNK_FRAMES

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """Of all chunks, the last one whole, and of taking each but the last into the memory."""
        spec = self.latent_spec(configs)
        _, _, height, width = spec.sample_shape(recipe.height, recipe.width, 0)
        observed_latents = 1 + (seen - 1) // spec.temporal_stride
        texts = 1 + (recipe.guidance > 1)
        predict = texts * chunks_flops(
            configs["transformer"], observed_latents, frames, height, width, recipe.denoise_steps
        )
        return Operations(self.encode_flops(configs, recipe.height, recipe.width, seen), predict)

    def blocks(self, configs: Configs) -> Blocks:
        """As `HasBlocks` has it; the first forward covers a chunk."""
        return diffusers_blocks(configs["transformer"], most_sigma=1.0, most_steps=CHUNK_FRAMES)

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        from .engine import AnyFlowWorld

        return AnyFlowWorld.load(folder, device=device, compute_dtype=compute_dtype, text=text)


def _is_text_to_video(transformer: Mapping[str, Any]) -> bool:
    """Of a transformer as NVIDIA's own code writes both under one name."""
    return class_of(transformer) == _TRANSFORMERS[1] and transformer.get("init_far_model") is False


def _mismatch_of_network(configs: Configs) -> str | None:
    """What the engine takes for granted of a transformer."""
    config, channels = configs["transformer"], latent_spec_of(configs["vae"]).channels
    if latent_spec_of(configs["vae"]).temporal_stride * CHUNK_FRAMES != _VIDEO_FRAMES:
        return "its autoencoder packs another number of video frames into a latent frame than Wan 2.1's four"
    if not config.get("in_channels") == config.get("out_channels") == channels:
        taken = f"{config.get('in_channels')} channels and gives {config.get('out_channels')}"
        return f"its transformer takes {taken}, not the {channels} of its autoencoder"
    if config.get("image_dim") is not None:
        return "its transformer takes CLIP's tokens of an image, which the pipeline never gives it"
    if config.get("deltatime_type") not in ("r", "t-r"):
        return f"its transformer has the deltatime_type {str(config.get('deltatime_type'))[:80]}, not r or t-r"
    sides = [_side(config.get(name)) for name in ("patch_size", "compressed_patch_size")]
    if sides[0] is None or sides[1] is None or sides[1] % sides[0]:
        return (
            "its patch_size and compressed_patch_size are no squares of one frame, the second a multiple of the first"
        )
    limit, positions = config.get("full_chunk_limit"), config.get("rope_max_seq_len")
    if type(limit) is not int or not 2 <= limit <= _MAX_RECENT:
        return f"its full_chunk_limit is {str(limit)[:80]}, not a small whole number from 2 on"
    if type(positions) is not int or not 1 + CHUNK_FRAMES <= positions <= _MAX_POSITIONS:
        return f"its rope_max_seq_len is {str(positions)[:80]}, not between {1 + CHUNK_FRAMES} and {_MAX_POSITIONS:,}"
    partition = config.get("chunk_partition")
    if partition is not None and not _is_partition(partition):
        return (
            f"its chunks have {str(partition)[:80]} latent frames (chunk_partition), not 1 and then {CHUNK_FRAMES} each"
        )
    return None


def _side(patch: object) -> int | None:
    """Of a square patch of one frame."""
    match patch:
        case [1, int(height), int(width)] if height == width and 0 < height <= _MAX_PATCH:
            return height
        case _:
            return None


def _is_partition(sizes: object) -> bool:
    """Whether it is 1, 3, 3, …, where the last may be shorter, as the end of a clip is."""
    match sizes:
        case [1, *middle, int(last)]:
            return all(size == CHUNK_FRAMES for size in middle) and 0 < last <= CHUNK_FRAMES
        case _:
            return False
