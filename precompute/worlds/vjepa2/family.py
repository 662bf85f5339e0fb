"""The family of V-JEPA 2, read from the config of a `VJEPA2Model`. Loads no heavy library.

Axes:  T latent frame, one tubelet   N token
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import LatentSpec
from ..arithmetic import Operations
from ..blocks import Blocks
from ..family import INDEX, OTHER_PIPELINE, ROOT, Ability, Card, Configs, Settings, TextForm, class_of
from .space import Sizes

if TYPE_CHECKING:
    from ....pipeline.latents.world_model import WorldModel
    from ..text_embeddings import TextEmbeddings

CLASS = "VJEPA2Model"
_PRETRAINED = "facebook/vjepa2-vitl-fpc64-256"


class VJepa2Family:
    """V-JEPA 2 of transformers: encoder and predictor of video features, without text, noise or pictures."""

    title = "Meta V-JEPA 2"
    parts: tuple[str, ...] = (ROOT,)
    text: TextForm | None = None
    settings = Settings(levels="none: one forward", guidance=None, most_seen=1, noise=False, size="card")
    lacks: frozenset[Ability] = frozenset({"posterior", "decode"})
    card = Card(height=256, width=256, window=32, fps=4.0, compute_dtype="float32")
    """Of 64 frames at 4 a second: configs/train of facebookresearch/vjepa2. In bfloat16 the predictor's positions would
    be rounded."""
    engine = 1
    names: Mapping[str, str] = {f"v-jepa2-vit{size}": f"facebook/vjepa2-vit{size}-fpc64-256" for size in "lhg"}

    def mismatch(self, configs: Configs) -> str | None:
        if ROOT not in configs:
            if INDEX in configs:
                return f"{OTHER_PIPELINE} {class_of(configs[INDEX])}, not a {CLASS}"
            return "it has no config.json of its own"
        config = configs[ROOT]
        model_type, classes = class_of(config), config.get("architectures")
        if model_type != "vjepa2":
            if "jepa" in model_type.lower():
                return f"it is a {model_type}; of V-JEPA, transformers has V-JEPA 2 alone, not 2.1 and not 2-AC"
            return f"{OTHER_PIPELINE} {model_type}, not a vjepa2"
        if classes not in (None, [CLASS]):
            return (
                f"it is a {' or '.join(map(str, classes)) if isinstance(classes, list) else classes}, which was tuned "
                f"to name classes. Choose the pretrained model, with its predictor, such as {_PRETRAINED}"
            )
        if (sizes := Sizes.of(config)).in_chans != 3:
            return f"it takes pictures of {sizes.in_chans} colours, not of 3"
        return None

    def latent_spec(self, configs: Configs) -> LatentSpec:
        return Sizes.of(configs[ROOT]).spec

    def card_of(self, configs: Configs) -> Card:
        sizes = Sizes.of(configs[ROOT])
        return Card(
            height=sizes.crop_size,
            width=sizes.crop_size,
            window=sizes.frames_per_clip // sizes.tubelet_size,
            fps=self.card.fps,
            compute_dtype=self.card.compute_dtype,
        )

    def check(self, recipe: Recipe) -> None:
        del recipe  # `settings` and `lacks` say it all

    def encode_flops(self, configs: Configs, height: int, width: int, frames: int) -> float:
        """Of each tubelet alone, the first frame's too. The size is the model's own."""
        del height, width
        config, sizes = configs[ROOT], Sizes.of(configs[ROOT])
        patches = 2 * sizes.tokens * sizes.hidden_size * 3 * sizes.tubelet_size * sizes.patch_size**2
        layers = sizes.num_hidden_layers * _layer_flops(sizes.tokens, sizes.hidden_size, config.get("mlp_ratio", 4.0))
        return (1 + (frames - 1) // sizes.tubelet_size) * (patches + layers)

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """The encoder once, and one forward of the predictor over all tubelets."""
        config, sizes = configs[ROOT], Sizes.of(configs[ROOT])
        tokens, width = frames * sizes.tokens, sizes.pred_hidden_size
        layers = sizes.pred_num_hidden_layers * _layer_flops(tokens, width, config.get("pred_mlp_ratio", 4.0))
        projections = 2 * tokens * sizes.hidden_size * width  # of the first tubelet into it, of the others out of it
        return Operations(self.encode_flops(configs, recipe.height, recipe.width, seen), layers + projections)

    def blocks(self, configs: Configs) -> Blocks:
        """As `HasBlocks` has it, of the predictor."""
        sizes = Sizes.of(configs[ROOT])
        return Blocks(count=sizes.pred_num_hidden_layers, width=sizes.pred_hidden_size, patch=1, most_sigma=None)

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
        from .engine import VJepa2World

        del text  # it reads none
        return VJepa2World.load(folder, device=device, compute_dtype=compute_dtype)


def _layer_flops(tokens: int, width: int, mlp_ratio: float) -> float:
    """One transformer layer; a multiply and an add are two."""
    return (8 + 4 * mlp_ratio) * tokens * width**2 + 4 * tokens**2 * width
