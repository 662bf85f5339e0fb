"""The built-in families of world models, and Cosmos-Predict2 (with the worldlet) among them. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipeline.latents.recipe import ENGINE_VERSION, Recipe
from ...pipeline.latents.spec import LatentSpec
from .anyflow_family import AnyFlowFamily
from .arithmetic import Operations, cosmos_forward_flops, text_tokens
from .cosmos3_family import Cosmos3
from .family import INDEX, Card, Configs, Settings, TextEncoder, TextForm, WorldFamily, mismatched
from .wan_families import InWanLatents, Wan21Family, WanTI2VFamily, WanTwoStageFamily

if TYPE_CHECKING:
    from ...pipeline.latents.world_model import WorldModel
    from .text_embeddings import TextEmbeddings

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
            return "its transformer projects its text with a bias, as Cosmos-Predict2.5 does, so it has no null text"
        if transformer.get("in_channels") != (transformer.get("out_channels") or 0) + 1:
            return "its transformer has no channel for the observed frame, so it begins with no image"
        if not configs["scheduler"].get("use_karras_sigmas"):
            return "its scheduler does not use Karras sigmas"
        return None

    def check(self, recipe: Recipe) -> None:
        del recipe  # the recipe's rules were written for it

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """Of the lean forward, whose cross-attention is left out where there is no text."""
        forwards = recipe.denoise_steps - (recipe.solver == "euler")  # Euler's last forward changes nothing
        return Operations(
            self.encode_flops(configs, recipe.height, recipe.width, seen),
            forwards * cosmos_step_flops(self.latent_spec(configs), configs, recipe, frames),
        )

    def load(
        self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None
    ) -> WorldModel:
        from .cosmos import CosmosWorld

        return CosmosWorld.load(folder, device=device, compute_dtype=compute_dtype, text=text)


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
    "cosmos3": Cosmos3(),
    "wan2.1-i2v": Wan21Family(),
    "wan2.2-ti2v": WanTI2VFamily(),
    "wan2.2-i2v": WanTwoStageFamily(),
    "anyflow-far": AnyFlowFamily(),
}
