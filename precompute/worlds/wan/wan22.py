"""Wan 2.2 image-to-video: TI2V 5B, whose tokens have a time each, and I2V A14B, whose noise levels have two networks.

Neither has CLIP. TI2V 5B has an autoencoder of its own, 48 channels and 16x16 pixels a cell: the clean encoding of the
image is the first latent frame itself, at time zero. A14B sees the image beside the noise, as Wan 2.1 does.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from ..family import INDEX, read_config
from ..network.offloading import offload_blocks
from ..network.taking_turns import TakingTurns
from ..text_embeddings import TextEmbeddings
from .engine import Scheduler, WanWorld, load_scheduler, load_transformer
from .vae import load_part


class WanTI2VWorld(WanWorld):
    """A `WorldModel` over the parts of Wan 2.2 TI2V 5B."""

    title = "Wan 2.2 TI2V"

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> WanTI2VWorld:
        """Load all but the text encoder of a folder in the stock layout.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """
        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        transformer = load_transformer(folder, device=device, compute_dtype=compute_dtype)
        return cls(vae, transformer, load_scheduler(folder), text=text)

    @torch.inference_mode()
    def condition(self, images: Float[Tensor, "B 3 height width"], rollout_steps: int) -> Float[Tensor, "B C 1 H W"]:
        """The clean first frame: the encoding of the image."""
        del rollout_steps
        return self.encode(images)

    def network_input(self, latents: Tensor, condition: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The clip with its first frame clean, and the time of each token: zero in the first frame.

        All samples have the same times, so there is one row of them; the pipeline repeats it, and the modulations of
        all tokens, which take more memory than their activations, with it.
        """
        frames, height, width = latents.shape[2:]
        deep, tall, wide = self.transformer.config["patch_size"]
        times = t.to(torch.float32).repeat(frames // deep)
        times[0] = 0.0
        return self.finish(latents, condition), times.repeat_interleave((height // tall) * (width // wide))[None]

    def finish(self, latents: Tensor, condition: Tensor) -> Tensor:
        """The clip with its first frame clean."""
        return torch.cat([condition, latents[:, :, 1:]], dim=2)


class WanTwoStageWorld(WanWorld):
    """A `WorldModel` over the parts of Wan 2.2 I2V A14B: one network for high noise, then one for low noise."""

    title = "Wan 2.2 I2V"

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: WanTransformer3DModel,
        transformer_2: WanTransformer3DModel,
        scheduler: Scheduler,
        *,
        boundary_ratio: float,
        text: TextEmbeddings | None = None,
    ) -> None:
        """
        Args:
            vae, scheduler, text: as of `WanWorld`.
            transformer, transformer_2: for high and for low noise, of one dtype; each on the device or in host memory.
            boundary_ratio: of the scheduler's training times, where low noise begins.
        """
        super().__init__(vae, transformer, scheduler, text=text)
        self.transformer_2 = transformer_2.eval().requires_grad_(False)
        self._boundary = boundary_ratio * scheduler.config["num_train_timesteps"]
        self._turns: TakingTurns | None = TakingTurns([transformer, transformer_2], self.device)

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> WanTwoStageWorld:
        """Load all but the text encoder of a folder in the stock layout.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """
        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        high, low = (
            load_transformer(folder, device="cpu", compute_dtype=compute_dtype, name=name)
            for name in ("transformer", "transformer_2")
        )
        boundary_ratio = float(read_config(folder / f"{INDEX}.json")["boundary_ratio"])
        return cls(vae, high, low, load_scheduler(folder), boundary_ratio=boundary_ratio, text=text)

    def compile_blocks(self) -> None:
        """As `Compilable` has it."""
        super().compile_blocks()
        self.transformer_2.compile_repeated_blocks(dynamic=False)

    def offload(self, device: str, *, pinned: bool) -> None:
        """As `Offloadable` has it, of both networks: the blocks of each come in its own forwards, so none takes the
        device over from the other."""
        self._turns = None  # it holds on to weights that a pinned copy replaces
        super().offload(device, pinned=pinned)
        offload_blocks(self.transformer_2, device, pinned=pinned)

    def networks(self) -> list[WanTransformer3DModel]:
        """Those of high and of low noise."""
        return [self.transformer, self.transformer_2]

    def network_at(self, t: Tensor) -> WanTransformer3DModel:
        """That of high noise down to the boundary, then the other; it takes the device over from its neighbour."""
        network = self.transformer if bool(t >= self._boundary) else self.transformer_2
        if self._turns is not None:
            self._turns.take(network)
        return network
