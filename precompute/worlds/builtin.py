"""The built-in families of world models, and Cosmos-Predict2 (with the worldlet) among them. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipeline.latents.recipe import ENGINE_VERSION, Recipe, Solver
from ...pipeline.latents.spec import LatentSpec
from .anyflow.family import AnyFlowFamily
from .arithmetic import Operations, cosmos_forward_flops, text_tokens
from .blocks import Blocks, diffusers_blocks
from .cosmos.cosmos3_family import Cosmos3
from .family import INDEX, Card, Configs, Settings, TextEncoder, TextForm, Training, WorldFamily, mismatched
from .memory import Memory
from .vjepa2.family import VJepa2Family
from .wan.families import InWanLatents, Wan21Family, WanTI2VFamily, WanTwoStageFamily, draws_noise
from .wan.memory import cosmos_memory

if TYPE_CHECKING:
    from ...pipeline.latents.world_model import WorldModel
    from .text_embeddings import PromptReader, TextEmbeddings

WORLDLET = "worldlet"
COSMOS = "nvidia/Cosmos-Predict2-2B-Video2World"
WEIGHTS = Path(__file__).parents[1] / "worldlet" / "weights"
"""The folder of the worldlet's weights."""


class _Cosmos(InWanLatents):
    title = "NVIDIA Cosmos-Predict2 Video2World"
    parts: tuple[str, ...] = ("vae", "transformer", "scheduler")
    text: TextForm | None = TextEncoder(class_name="T5EncoderModel", empty_is_free=True, guardrail=True)
    settings = Settings(
        solvers=("euler", "2ab"),
        levels="Karras, sigma 80 to 0.002",
        guidance="cond + g (cond - uncond)",
        fps="optional",
    )
    card = Card()
    training = Training(
        sizes=(
            *((480, 480), (480, 640), (640, 480), (432, 768), (768, 432)),
            *((960, 960), (704, 960), (960, 704), (704, 1280), (1280, 704)),
        )
    )
    """Source: `VIDEO_RES_SIZE_INFO` of nvidia-cosmos/cosmos-predict2, at 480 and 720; 93 video frames."""
    engine = ENGINE_VERSION
    names: Mapping[str, str] = {
        WORLDLET: str(WEIGHTS),
        "cosmos-predict2-2b": COSMOS,
        "cosmos-predict2-14b": "nvidia/Cosmos-Predict2-14B-Video2World",
    }

    def mismatch(self, configs: Configs) -> str | None:
        expected = {
            INDEX: ("Cosmos2VideoToWorldPipeline",),
            "vae": ("AutoencoderKLWan",),
            "transformer": ("CosmosTransformer3DModel",),
            "scheduler": ("FlowMatchEulerDiscreteScheduler",),
        }
        if (problem := mismatched(configs, expected)) is not None:
            return problem
        transformer = configs["transformer"]
        if transformer.get("use_crossattn_projection"):
            return "its transformer projects its text: it is a Cosmos-Predict2.5 model, of the family cosmos-predict2.5"
        if transformer.get("in_channels") != (transformer.get("out_channels") or 0) + 1:
            return "its transformer has no channel for the observed frame, so it begins with no image"
        if not configs["scheduler"].get("use_karras_sigmas"):
            return "its scheduler does not use Karras sigmas"
        return draws_noise(configs["scheduler"])

    def check(self, recipe: Recipe) -> None:
        del recipe  # the recipe's rules were written for it

    def spread_kept(self, solver: Solver, denoise_steps: int) -> float:
        """As `HasSpread` has it."""
        from .cosmos.solvers import spread_kept

        return spread_kept(solver, denoise_steps)

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """Of the lean forward, whose cross-attention is left out where there is no text."""
        forwards = recipe.denoise_steps - (recipe.solver == "euler")  # Euler's last forward changes nothing
        return Operations(
            self.encode_flops(configs, recipe.height, recipe.width, seen),
            forwards * cosmos_step_flops(self.latent_spec(configs), configs, recipe, frames),
        )

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        from .cosmos.predict2 import CosmosWorld

        return CosmosWorld.load(folder, device=device, compute_dtype=compute_dtype, text=text)

    def memory_of_batch(self, configs: Configs, recipe: Recipe, batch: int) -> Memory:
        return cosmos_memory(configs, recipe, batch)

    def blocks(self, configs: Configs) -> Blocks:
        return diffusers_blocks(configs["transformer"], most_sigma=80.0)


@dataclass(frozen=True, slots=True)
class _ProjectedText:
    """The `TextForm` of Cosmos-Predict2.5: all layers of Qwen2.5-VL, projected by the transformer."""

    parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    empty_is_free: bool = True  # a constant of the transformer
    guardrail: bool = True

    def most_bytes(self, configs: Configs) -> int:
        width = configs.get("transformer", {}).get("encoder_hidden_states_channels")
        return 512 * width * 4 if type(width) is int else 0

    def load(self, folder: Path, recipe: Recipe, *, device: str) -> PromptReader:
        from .cosmos.predict25_text import load_reader

        return load_reader(folder, compute_dtype=recipe.compute_dtype, device=device)


class _Cosmos25(InWanLatents):
    title = "NVIDIA Cosmos-Predict2.5"
    parts: tuple[str, ...] = ("vae", "transformer", "scheduler")
    text: TextForm | None = _ProjectedText()
    settings = Settings(levels="Karras along a flow, 0.995 to 0", guidance="cond + g (cond - uncond)", most_seen=2)
    card = Card(height=704, width=1280, denoise_steps=20, window=24, fps=16.0)
    """Source: `Cosmos2_5_PredictBasePipeline.__call__`, 93 video frames; 36 steps there, 20 leave as much deviation."""
    engine = 1
    names: Mapping[str, str] = {
        f"cosmos-predict2.5-{size.lower()}": f"nvidia/Cosmos-Predict2.5-{size}@diffusers/base/post-trained"
        for size in ("2B", "14B")
    }

    def mismatch(self, configs: Configs) -> str | None:
        index = configs.get(INDEX, {}).get("_class_name")
        if index == "Cosmos2_5_TransferPipeline" or "controlnet" in configs:
            return "it is Cosmos-Transfer2.5, which follows a control video; Cosmos-Predict2.5 needs an image alone"
        expected = {
            INDEX: ("Cosmos2_5_PredictBasePipeline",),
            "vae": ("AutoencoderKLWan",),
            "transformer": ("CosmosTransformer3DModel",),
            "scheduler": ("UniPCMultistepScheduler",),
        }
        if (problem := mismatched(configs, expected)) is not None:
            return problem
        transformer = configs["transformer"]
        if not transformer.get("use_crossattn_projection"):
            return "its transformer does not project its text, as that of Cosmos-Predict2.5 does"
        if transformer.get("img_context_dim_in") or transformer.get("controlnet_block_every_n"):
            return "its transformer follows a control beside the text: it is a Cosmos-Transfer model"
        if transformer.get("in_channels") != (transformer.get("out_channels") or 0) + 1:
            return "its transformer has no channel for the observed frames, so it begins with no image"
        scheduler = configs["scheduler"]
        if not (scheduler.get("use_flow_sigmas") and scheduler.get("prediction_type") == "flow_prediction"):
            return "its scheduler does not step along a flow (use_flow_sigmas, prediction_type)"
        if not scheduler.get("use_karras_sigmas"):
            return "its scheduler does not use Karras sigmas, as those of the base models do"
        return None

    def check(self, recipe: Recipe) -> None:
        del recipe  # `settings` says it all

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """N forwards for N denoise steps; no text is one token."""
        return Operations(
            self.encode_flops(configs, recipe.height, recipe.width, seen),
            recipe.denoise_steps * cosmos_step_flops(self.latent_spec(configs), configs, recipe, frames, no_text=1),
        )

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        from .cosmos.predict25 import Cosmos25World

        return Cosmos25World.load(folder, device=device, compute_dtype=compute_dtype, text=text)

    def memory_of_batch(self, configs: Configs, recipe: Recipe, batch: int) -> Memory:
        """The loop keeps the velocity and that of what is observed; UniPC two outputs and the clip before."""
        return cosmos_memory(configs, recipe, batch, kept=5)

    def blocks(self, configs: Configs) -> Blocks:
        return diffusers_blocks(configs["transformer"], most_sigma=1.0)


def cosmos_step_flops(spec: LatentSpec, configs: Configs, recipe: Recipe, frames: int, *, no_text: int = 0) -> float:
    """The forwards of one denoise step of a Cosmos-Predict network.

    Args:
        no_text: tokens that stand for no text.
    """
    _, _, height, width = spec.sample_shape(recipe.height, recipe.width, 0)
    return sum(
        cosmos_forward_flops(configs["transformer"], frames, height, width, tokens)
        for tokens in text_tokens(recipe, no_text=no_text)
    )


BUILT_IN: Mapping[str, WorldFamily] = {
    "cosmos-predict2": _Cosmos(),
    "cosmos-predict2.5": _Cosmos25(),
    "cosmos3": Cosmos3(),
    "wan2.1-i2v": Wan21Family(),
    "wan2.2-ti2v": WanTI2VFamily(),
    "wan2.2-i2v": WanTwoStageFamily(),
    "anyflow-far": AnyFlowFamily(),
    "v-jepa2": VJepa2Family(),
}
