"""What engines of one joint diffusion share: the rollout around their loop, and hidden states of its first forward.

Axes:  B sample   C channels   T latent frames   H W latent rows, columns   D kept width of a token
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....pipeline.latents.hidden import hidden_latents
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.tensors import draw_noise
from ..blocks import tokens_behind
from ..network.offloading import offload_blocks
from ..text_embeddings import FollowsPrompts
from ..wan.vae import WanLatents

if TYPE_CHECKING:
    from .cosmos3_forward import GenerationTower
    from .forward import LeanTransformer


class JointDiffusion(FollowsPrompts, WanLatents):
    """An engine that denoises the observed frames and their future together."""

    @abstractmethod
    def _begin(self, observed: Tensor, noise: Tensor, recipe: Recipe) -> Tensor:
        """The engine's `denoise` with what the recipe says."""

    @property
    @abstractmethod
    def _network(self) -> LeanTransformer | GenerationTower:
        """The network that denoises."""

    @abstractmethod
    def _block(self, number: int) -> nn.Module:
        """A block of the network, counted from 1."""

    def compile_blocks(self) -> None:
        """As `Compilable` has it."""
        self._network.compile_blocks()

    def offload(self, device: str, *, pinned: bool) -> None:
        """As `Offloadable` has it."""
        self.move_autoencoder(device)
        offload_blocks(self._network, device, pinned=pinned)

    @torch.inference_mode()
    def rollout(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B C T H W"]:
        """Standardised float32 latents of the observed frames and their predicted future, in one joint diffusion.

        Observed frames are encoded, not predicted; frame 0 equals `encode` of the image or first frame.

        Args:
            seen: float32 in [-1, 1], of the recipe's size: images, or the first frames of videos, 1 + a multiple of
                the temporal stride. keys: one per input; with the recipe's seed and draw it fixes the sample's noise,
                so batch and order do not matter.
        Raises:
            ConfigError: this world was loaded without embeddings that the recipe needs, or the recipe's latents are not
                those of one joint diffusion.
        """
        observed = self.encode_observed(seen, recipe)
        if recipe.rollout_steps == 0:
            return observed
        latents = self._begin(observed, self._noise(observed, keys, recipe), recipe)
        latents[:, :, : observed.shape[2]] = observed  # solvers leave it a little away: Euler by sigma_min of noise
        return latents[:, :, :: recipe.stride].contiguous()

    @torch.inference_mode()
    def hidden(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B D T rows columns"]:
        """As `HasHiddenStates` has it; raises as `rollout`."""
        observed = self.encode_observed(seen, recipe)
        noise = self._noise(observed, keys, recipe)
        tokens = tokens_behind([self._block(recipe.hidden_block)], lambda: self._begin(observed, noise, recipe))
        return hidden_latents(observed, tokens, recipe)

    def _noise(self, observed: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        """The noise of the whole clip, observed frames included: (B, C, T, H, W) on the engine's device."""
        frames = 1 + recipe.rollout_steps * recipe.stride
        return draw_noise(recipe, keys, (observed.shape[1], frames, *observed.shape[3:])).to(self.device)
