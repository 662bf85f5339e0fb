"""The families of Wan's image-to-video models: Wan 2.1, and of Wan 2.2 TI2V 5B and I2V A14B. Loads no heavy library."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import LatentSpec, video_frames
from ..arithmetic import Operations, wan_encode_flops, wan_forward_flops
from ..blocks import Blocks, diffusers_blocks
from ..family import (
    INDEX,
    OTHER_PIPELINE,
    Card,
    Configs,
    Settings,
    TextEncoder,
    TextForm,
    Training,
    class_of,
    mismatched,
)
from ..memory import Memory
from .memory import wan_memory, wan_ti2v_memory, wan_vae_decoding
from .space import latent_spec_of

if TYPE_CHECKING:
    from ....pipeline.latents.world_model import Autoencoder, WorldModel
    from ..text_embeddings import TextEmbeddings

Line = Literal["one transformer", "two transformers", "time per token", "no image"]
"""What tells Wan's models apart, by the settings of their pipelines."""

_MAX_PATCH = 16
"""Latent cells of a side that enter a network as one; all we know have two."""
_WORK = "wan2.1-i2v-480p, wan2.2-ti2v-5b and wan2.2-i2v-a14b begin with one image"
_NO_IMAGE: Mapping[str, str] = {
    "WanPipeline": "which makes videos of text and takes no image",
    "WanVideoToVideoPipeline": "which changes a video and continues no image",
    "WanVACEPipeline": "which follows videos that control it",
    "WanAnimatePipeline": "which needs the video of a person to follow",
    "WanSpeechToVideoPipeline": "which needs speech",
}


def clean_prompt(text: str) -> str:
    """The text with HTML entities resolved and white space collapsed.

    Source: `prompt_clean` of the Wan pipeline, without ftfy, which only changes text that was wrongly decoded.
    """
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


class InWanLatents:
    """Base of families that use Wan's autoencoder; the numbers are those of Wan 2.1's."""

    channels, spatial_stride = 16, 8
    autoencoder_parts: tuple[str, ...] = ("vae",)

    def latent_spec(self, configs: Configs) -> LatentSpec:
        return latent_spec_of(configs["vae"])

    def load_autoencoder(self, folder: Path, *, device: str) -> Autoencoder:
        from .vae import load_autoencoder

        return load_autoencoder(folder, device=device)

    def memory_of_decoding(self, configs: Configs, frames: int, height: int, width: int) -> Memory:
        return wan_vae_decoding(configs, frames, height, width)

    def encode_flops(self, configs: Configs, height: int, width: int, frames: int) -> float:
        return wan_encode_flops(configs["vae"], height, width, frames)


class _WanFamily(InWanLatents):
    """What the families share."""

    line: ClassVar[Line]
    text: TextForm | None = TextEncoder(
        class_name="UMT5EncoderModel",
        empty_is_free=False,  # its text projection has a bias, and it was trained with the embedding of "" as no text
        guardrail=False,  # Apache 2.0
        clean=clean_prompt,
    )
    settings = Settings(most_seen=1)
    engine = 1

    def mismatch(self, configs: Configs) -> str | None:
        """None for a folder of this family. The reason of one of another line begins as `OTHER_PIPELINE`, so that only
        the family that it is nearest to is heard."""
        index = configs.get(INDEX, {})
        line = _line_of(configs)
        if line == "no image" and self.line == "time per token":  # one speaks for all
            return f"it is a {class_of(index)}, {_NO_IMAGE[class_of(index)]}; {_WORK}"
        expected: dict[str, tuple[str, ...]] = {
            INDEX: ("WanImageToVideoPipeline", *(("WanPipeline",) if line == "time per token" else ())),
            "vae": ("AutoencoderKLWan",),
            "transformer": ("WanTransformer3DModel",),
        }
        if (problem := mismatched(configs, expected)) is not None:
            return problem
        if line != self.line:
            return f"{OTHER_PIPELINE} {class_of(index)} with {line}, not with {self.line}"
        return (
            _mismatch_of_patches(configs)
            or self.mismatch_of_network(configs)
            or mismatched(configs, {"text_encoder": ("umt5",), "tokenizer": ()})
            or _mismatch_of_scheduler(configs)
        )

    def mismatch_of_network(self, configs: Configs) -> str | None:
        """The same, of transformers and what they see of the image."""
        raise NotImplementedError

    def check(self, recipe: Recipe) -> None:
        del recipe  # `settings` says it all

    def size_multiple(self, configs: Configs) -> int:
        """Of a patch of its network."""
        return self.latent_spec(configs).spatial_stride * max(configs["transformer"]["patch_size"][1:])

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """Of the encoded clip, the image and then grey, and of one forward for each noise level, two with guidance.
        CLIP, less than a hundredth of a forward, is left out."""
        spec = self.latent_spec(configs)
        _, _, height, width = spec.sample_shape(recipe.height, recipe.width, 0)
        step = (1 + (recipe.guidance > 1)) * wan_forward_flops(
            configs["transformer"], frames, height, width, image_tokens=_clip_tokens(configs)
        )
        encoded = self.encoded_frames(seen, video_frames(frames - 1, temporal_stride=spec.temporal_stride))
        return Operations(self.encode_flops(configs, recipe.height, recipe.width, encoded), recipe.denoise_steps * step)

    def blocks(self, configs: Configs) -> Blocks:
        """As `HasBlocks` has it, of the network that begins; both of Wan 2.2 are alike."""
        return diffusers_blocks(configs["transformer"], most_sigma=1.0)

    def encoded_frames(self, observed_frames: int, clip: int) -> int:
        """Video frames that a rollout encodes, of those it is shown and those of the clip."""
        del observed_frames
        return clip


class Wan21Family(_WanFamily):
    title = "Wan 2.1 image-to-video"
    line: ClassVar[Line] = "one transformer"
    parts: tuple[str, ...] = ("vae", "transformer", "scheduler", "image_encoder", "image_processor")
    card = Card(height=480, width=832, denoise_steps=50, window=21, fps=16.0)
    """Source: `WanImageToVideoPipeline.__call__`, 81 video frames; the model card of Wan2.1-I2V-14B-480P."""
    names: Mapping[str, str] = {"wan2.1-i2v-480p": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"}

    def mismatch_of_network(self, configs: Configs) -> str | None:
        transformer = configs["transformer"]
        if transformer.get("image_dim") is None:
            return f"its transformer takes no image (text-to-video, or Wan 2.2 without its model_index.json); {_WORK}"
        if transformer.get("pos_embed_seq_len") is not None:
            return f"its transformer wants a last frame beside the first; {_WORK}"
        return _mismatch_of_channels(configs, "transformer") or mismatched(
            configs, {"image_encoder": ("clip_vision_model",), "image_processor": ()}
        )

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        from .wan21 import Wan21World

        return Wan21World.load(folder, device=device, compute_dtype=compute_dtype, text=text)

    def memory_of_batch(self, configs: Configs, recipe: Recipe, batch: int) -> Memory:
        return wan_memory(configs, recipe, batch)


class WanTI2VFamily(_WanFamily):
    title = "Wan 2.2 TI2V"
    line: ClassVar[Line] = "time per token"
    channels, spatial_stride = 48, 16
    parts: tuple[str, ...] = ("vae", "transformer", "scheduler")
    card = Card(height=704, width=1280, denoise_steps=50, window=31, fps=24.0)
    """Source: the model card of Wan2.2-TI2V-5B-Diffusers, 121 video frames."""
    names: Mapping[str, str] = {"wan2.2-ti2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"}

    def mismatch_of_network(self, configs: Configs) -> str | None:
        transformer, channels = configs["transformer"], latent_spec_of(configs["vae"]).channels
        if transformer.get("image_dim") is not None:
            return "its transformer takes CLIP's tokens of the image, which no Wan 2.2 does"
        if not transformer.get("in_channels") == transformer.get("out_channels") == channels:
            taken = f"{transformer.get('in_channels')} channels and gives {transformer.get('out_channels')}"
            return f"its transformer takes {taken}, not the {channels} of its autoencoder"
        if (ratio := configs.get(INDEX, {}).get("boundary_ratio")) is not None:
            return f"a second transformer takes over at its boundary_ratio {str(ratio)[:20]}, and TI2V has one"
        return None

    def encoded_frames(self, observed_frames: int, clip: int) -> int:
        del clip
        return observed_frames

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        from .wan22 import WanTI2VWorld

        return WanTI2VWorld.load(folder, device=device, compute_dtype=compute_dtype, text=text)

    def memory_of_batch(self, configs: Configs, recipe: Recipe, batch: int) -> Memory:
        return wan_ti2v_memory(configs, recipe, batch)


class WanTwoStageFamily(_WanFamily):
    title = "Wan 2.2 image-to-video"
    line: ClassVar[Line] = "two transformers"
    parts: tuple[str, ...] = ("vae", "transformer", "transformer_2", "scheduler")
    index_decides = True
    """The boundary between its transformers stands in `model_index.json`."""
    settings = Settings(most_seen=1, guidance="uncond + g (cond - uncond), with one g for both transformers")
    card = Card(height=480, width=832, denoise_steps=40, window=21, fps=16.0)
    """Source: the model card of Wan2.2-I2V-A14B-Diffusers, 81 video frames."""
    training = Training(sizes=((480, 832), (832, 480), (720, 1280), (1280, 720)))
    """As there: 480P and 720P."""
    names: Mapping[str, str] = {"wan2.2-i2v-a14b": "Wan-AI/Wan2.2-I2V-A14B-Diffusers"}

    def mismatch_of_network(self, configs: Configs) -> str | None:
        if (problem := mismatched(configs, {"transformer_2": ("WanTransformer3DModel",)})) is not None:
            return problem
        for part in ("transformer", "transformer_2"):
            if configs[part].get("image_dim") is not None:
                return f"its {part} takes CLIP's tokens of the image, which no Wan 2.2 does"
            if (problem := _mismatch_of_channels(configs, part)) is not None:
                return problem
        ratio = configs.get(INDEX, {}).get("boundary_ratio")
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            return (
                f"its model_index.json has the boundary_ratio {ratio}, not a number between 0 and 1: where its second "
                "transformer takes over is not known"
            )
        return None

    def held_share(self, configs: Configs) -> Mapping[str, float]:
        """One transformer at a time: they take turns on the device."""
        del configs
        return {"transformer_2": 0.0}

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        from .wan22 import WanTwoStageWorld

        return WanTwoStageWorld.load(folder, device=device, compute_dtype=compute_dtype, text=text)

    def memory_of_batch(self, configs: Configs, recipe: Recipe, batch: int) -> Memory:
        return wan_memory(configs, recipe, batch)


def _line_of(configs: Configs) -> Line:
    index: Mapping[str, Any] = configs.get(INDEX, {})
    if index.get("expand_timesteps") and class_of(index) in ("WanPipeline", "WanImageToVideoPipeline"):
        return "time per token"
    if class_of(index) in _NO_IMAGE:
        return "no image"
    return (
        "two transformers"
        if "transformer_2" in configs or index.get("boundary_ratio") is not None
        else "one transformer"
    )


def _mismatch_of_patches(configs: Configs) -> str | None:
    """Of each transformer there is: sizes are checked by the patches, and plans count them."""
    for part in ("transformer", "transformer_2"):
        patch = configs[part].get("patch_size") if part in configs else [1, 1, 1]
        sides: list[Any] = patch if isinstance(patch, list) else []
        if not (len(sides) == 3 and all(type(side) is int and 0 < side <= _MAX_PATCH for side in sides)):
            return f"its {part} has the patch_size {str(patch)[:80]}, not three small whole numbers"
        if sides[0] != 1:
            return f"its {part} takes {sides[0]} latent frames as one (patch_size), and clips are of any length"
    return None


def _mismatch_of_channels(configs: Configs, part: str) -> str | None:
    """Of a network that sees a mask and the encoding of the image beside the noise."""
    spec = latent_spec_of(configs["vae"])
    taken, channels = configs[part].get("in_channels"), 2 * spec.channels + spec.temporal_stride
    return None if taken == channels else f"its {part} takes {taken} channels, not {channels} of image-to-video"


def _mismatch_of_scheduler(configs: Configs) -> str | None:
    expected = {"scheduler": ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")}
    if (problem := mismatched(configs, expected)) is not None:
        return problem
    scheduler = configs["scheduler"]
    if scheduler["_class_name"] == "UniPCMultistepScheduler" and not (
        scheduler.get("use_flow_sigmas") and scheduler.get("prediction_type") == "flow_prediction"
    ):
        return "its scheduler does not step along a flow (use_flow_sigmas, prediction_type)"
    if scheduler.get("use_dynamic_shifting"):
        return "its scheduler shifts by the size of the clip, which the stock pipeline never tells it"
    return draws_noise(scheduler)


def draws_noise(scheduler: Mapping[str, Any]) -> str | None:
    """Why a scheduler is refused that draws noise: not from a sample's key, so no latent could be made again."""
    if scheduler.get("stochastic_sampling"):
        return "its scheduler draws noise of its own in each step (stochastic_sampling)"
    return None


def _clip_tokens(configs: Configs) -> int:
    """Of an image, where the family has CLIP: one a patch, and one for the whole."""
    encoder = configs.get("image_encoder")
    return 1 + (encoder["image_size"] // encoder["patch_size"]) ** 2 if encoder else 0
