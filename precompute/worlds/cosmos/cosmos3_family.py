"""The family of NVIDIA's Cosmos 3: Edge, Nano and Super, from their folders' configs. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ....pipeline.latents.recipe import Recipe
from ..arithmetic import Operations
from ..blocks import Blocks
from ..family import INDEX, Card, Configs, Settings, TextForm, Training, mismatched, read_configs
from ..memory import Memory
from ..network.transformer_memory import Forward, generation_forward_memory
from ..wan.families import InWanLatents
from ..wan.memory import Network, memory_of_engine
from ..wan.space import latent_spec_of
from .cosmos3_clip import MAX_PROMPT_TOKENS, Clip, fps_of

if TYPE_CHECKING:
    from ....pipeline.latents.world_model import WorldModel
    from ..text_embeddings import PromptReader, TextEmbeddings

EDGE, NANO = "nvidia/Cosmos3-Edge", "nvidia/Cosmos3-Nano"
TEXT_TOKENS = 80
"""Of the empty prompt, roughly; for estimates, whatever the prompt."""
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "hidden_act": "silu", "attention_bias": False,
    "qk_norm_for_text": True, "use_und_k_norm_for_gen": False, "latent_channel": 48, "latent_patch_size": 2,
    "patch_latent_dim": 192,
}  # fmt: skip
"""Of `Cosmos3OmniTransformer`, for configs of the first months, which leave out what came later."""
TIME_CHANNELS = 256
"""That the time of a step is written in. Source: `Cosmos3OmniTransformer.__init__`."""
_WORK = "cosmos3-edge and cosmos3-nano begin with an image"


@dataclass(frozen=True, slots=True)
class KeysAndValues:
    """The `TextForm` of Cosmos 3: keys and values that the transformer's understanding tower leaves of a prompt."""

    parts: tuple[str, ...] = ("text_tokenizer",)
    empty_is_free: bool = False
    """The empty prompt is told the size and length of the clip, as the model was trained."""
    guardrail: bool = False
    """OpenMDW-1.1, the licence on the models' pages, asks for none."""

    def most_bytes(self, configs: Configs) -> int:
        """Of each layer, for so many tokens, in float32."""
        config = {**DEFAULTS, **configs.get("transformer", {})}
        sizes = [config[name] for name in ("num_hidden_layers", "num_key_value_heads", "head_dim")]
        layers, heads, width = (size if type(size) is int else 0 for size in sizes)
        return 2 * layers * heads * width * MAX_PROMPT_TOKENS * 4

    def load(self, folder: Path, recipe: Recipe, *, device: str) -> PromptReader:
        """As `TextForm` has it."""
        from .cosmos3_text import load_reader

        configs = read_configs(folder)
        return load_reader(
            folder,
            Clip.of(recipe, temporal_stride=latent_spec_of(configs["vae"]).temporal_stride),
            device=device,
            compute_dtype=recipe.compute_dtype,
            use_system_prompt=bool(configs.get(INDEX, {}).get("default_use_system_prompt", True)),
        )


class Cosmos3(InWanLatents):
    """Image and video to world; no sound, no actions."""

    title = "NVIDIA Cosmos 3"
    parts: tuple[str, ...] = ("vae", "transformer", "scheduler")
    text: TextForm | None = KeysAndValues()
    index_decides: Literal[True] = True
    """`default_use_system_prompt` and `use_native_flow_schedule`."""
    settings = Settings(fps="card", most_seen=2)
    card = Card(height=256, width=256, denoise_steps=20, window=38, fps=24.0)
    """Source: the cards of Cosmos3-Edge and -Nano: 256p is the smallest size of both, Edge was trained on 50 to 150
    frames at 12 to 30 a second, Nano on 5 to 300; Edge's recipe has 20 steps."""
    training = Training(sizes=((256, 256), (256, 320), (320, 256), (544, 736), (736, 544)), shortest=13)
    """Some of `VIDEO_RES_SIZE_INFO` of NVIDIA's cosmos_framework, at 256 and 480; Edge's 50 video frames."""
    engine = 1
    names: Mapping[str, str] = {"cosmos3-edge": EDGE, "cosmos3-nano": NANO}
    channels, spatial_stride = 48, 16

    def mismatch(self, configs: Configs) -> str | None:
        """None for a folder of Edge, Nano or Super."""
        expected = {
            INDEX: ("Cosmos3OmniPipeline", "Cosmos3OmniDiffusersPipeline"),  # the second in folders of the first months
            "vae": ("AutoencoderKLWan",),
            "transformer": ("Cosmos3OmniTransformer",),
        }
        if (problem := mismatched(configs, expected)) is not None:
            return problem
        transformer, scheduler = configs["transformer"], configs.get("scheduler", {})
        return (
            _of_another_member(transformer, scheduler)
            or mismatched(configs, {"scheduler": ("UniPCMultistepScheduler",), "text_tokenizer": ()})
            or _of_another_form(configs)
        )

    def check(self, recipe: Recipe) -> None:
        """Whatever `settings` does not say."""
        if recipe.rollout_steps and recipe.traits.predicts:
            fps_of(recipe)

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """Of the generation tower, one forward for each noise level, two with guidance. The pass over the prompt, once
        a job, is left out."""
        _, _, height, width = self.latent_spec(configs).sample_shape(recipe.height, recipe.width, 0)
        step = (1 + (recipe.guidance > 1)) * generation_flops(configs["transformer"], frames, height, width)
        encoded = self.encode_flops(configs, recipe.height, recipe.width, seen)
        return Operations(encoded, recipe.denoise_steps * step)

    def blocks(self, configs: Configs) -> Blocks:
        """As `HasBlocks` has it, of the generation tower."""
        config = {**DEFAULTS, **configs["transformer"]}
        return Blocks(
            count=config["num_hidden_layers"],
            width=config["hidden_size"],
            patch=config["latent_patch_size"],
            most_sigma=1.0,
        )

    def held_share(self, configs: Configs) -> Mapping[str, float]:
        """As `HasRest` has it."""
        generation, understanding = tower_numbers(configs["transformer"])
        return {"transformer": generation / (generation + understanding)}

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        """As `WorldFamily` has it."""
        from .cosmos3 import Cosmos3World

        return Cosmos3World.load(folder, device=device, compute_dtype=compute_dtype, text=text)

    def memory_of_batch(self, configs: Configs, recipe: Recipe, batch: int) -> Memory:
        """Of the generation tower alone, beside the keys and values of its prompts."""
        transformer = {**DEFAULTS, **configs["transformer"]}
        network = Network.of(lambda config: tower_numbers(config)[0], transformer, recipe, layers="num_hidden_layers")

        def forward_memory(forward: Forward) -> int:
            prompts = (batch if recipe.prompts == "sample" else 1) + forward.guided
            return generation_forward_memory(transformer, replace(forward, texts=prompts), TEXT_TOKENS)

        return memory_of_engine(configs, recipe, batch, network, forward_memory)


def generation_flops(config: Mapping[str, Any], frames: int, height: int, width: int) -> float:
    """One forward of the generation tower; a multiply and an add are two.

    Args:
        frames, height, width: of the latent.
    """
    config = {**DEFAULTS, **config}
    patch = config["latent_patch_size"]
    n = frames * -(-height // patch) * -(-width // patch)
    d, attention_width = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    shared = config["num_key_value_heads"] * config["head_dim"]
    projections = 4 * n * d * (attention_width + shared)
    attention = 4 * n * (n + TEXT_TOKENS) * attention_width
    mlp = 2 * n * d * config["intermediate_size"] * (2 if config["hidden_act"] == "relu2" else 3)
    ends = 4 * n * d * config["patch_latent_dim"]
    return config["num_hidden_layers"] * (projections + attention + mlp) + ends


def tower_numbers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Weights of the generation tower with its ends, which a worker holds, and of the understanding tower with its
    embeddings and head; those of sound and actions are in neither."""
    config = {**DEFAULTS, **config}
    d, width, layers = config["hidden_size"], config["head_dim"], config["num_hidden_layers"]
    heads, shared = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    mlp = d * config["intermediate_size"] * (2 if config["hidden_act"] == "relu2" else 3)
    layer = 2 * d * (heads + shared) + mlp + 2 * d
    if config["attention_bias"]:
        layer += heads + 2 * shared + d
    normed = bool(config["qk_norm_for_text"])
    text_norms = 2 * width * normed + width * (bool(config["use_und_k_norm_for_gen"]) and not normed)
    ends = (2 * d + 1) * config["patch_latent_dim"] + d + (TIME_CHANNELS + d + 2) * d + d
    text_ends = 2 * config["vocab_size"] * d + d
    return layers * (layer + 2 * width) + ends, layers * (layer + text_norms) + text_ends


def _of_another_member(transformer: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str | None:
    """Why a folder of the line is of a member that this engine does not run."""
    if scheduler.get("fixed_step_sampler_config"):
        return (
            "it is a student of few steps (Cosmos3-Super-Image2Video-4Step and its like), whose scheduler has a fixed "
            f"list of noise levels and draws noise in each step. Take the model it was distilled from; {_WORK}"
        )
    blocks = sorted(name for name in transformer if name.startswith("cosmos3_"))
    if transformer.get("video_temporal_causal") or blocks:
        what = blocks[0] if blocks else "video_temporal_causal"
        return f"it is a simulator (Cosmos3-Nano-Sim-… and its like) that goes frame by frame ({what}); {_WORK}"
    if named := [name for name in ("domain_name", "action_chunk_size") if transformer.get(name) is not None]:
        return (
            f"it is a robot's policy (Cosmos3-…-Policy-… and its like, {named[0]}), which answers with actions; {_WORK}"
        )
    if transformer.get("quantization_config"):
        return "its transformer is quantized. The main revision of its repository, in bfloat16, works"
    return None


def _of_another_form(configs: Configs) -> str | None:
    """Why parts of the right classes do not fit each other or the engine."""
    transformer, scheduler = configs["transformer"], configs["scheduler"]
    if not (scheduler.get("use_flow_sigmas") and scheduler.get("prediction_type") == "flow_prediction"):
        return "its scheduler does not step along a flow (use_flow_sigmas, prediction_type)"
    if scheduler.get("use_dynamic_shifting"):
        return "its scheduler shifts by the size of the clip, which the stock pipeline never tells it"
    spec = latent_spec_of(configs["vae"])
    config = {**DEFAULTS, **transformer}
    channels, patch = config["latent_channel"], config["latent_patch_size"]
    numbers = patch * patch * spec.channels if type(patch) is int else None
    if channels != spec.channels or config["patch_latent_dim"] != numbers:
        return f"its transformer takes latents of {channels} channels, and its vae makes {spec.channels}"
    if INDEX not in configs:
        return "it has no model_index.json, which says how prompts are written and how noise levels are spaced"
    return None
