"""Wan 2.1 image-to-video: the image stands beside the noise, and CLIP's tokens of it beside the text's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from ....pipeline.errors import WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ...media.images import to_image
from ..text_embeddings import TextEmbeddings
from .engine import Scheduler, WanWorld, load_scheduler, load_transformer
from .vae import load_part


class Wan21World(WanWorld):
    """A `WorldModel` over the parts of a Wan 2.1 image-to-video pipeline."""

    title = "Wan 2.1 image-to-video"

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: WanTransformer3DModel,
        scheduler: Scheduler,
        image_encoder: CLIPVisionModel,
        image_processor: CLIPImageProcessorPil,
        *,
        text: TextEmbeddings | None = None,
    ) -> None:
        """
        Args:
            vae, transformer, scheduler, text: as of `WanWorld`. image_encoder: float32, on their device.
        """
        super().__init__(vae, transformer, scheduler, text=text)
        self.image_encoder = image_encoder.eval().requires_grad_(False)
        self.image_processor = image_processor

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
    ) -> Wan21World:
        """Load all but the text encoder of a folder in the stock layout.

        Raises:
            WorldModelError: a part is missing or is of another class.
        """

        def load(kind: Any, part: str, **options: Any) -> Any:
            what = f"world model's {part}"
            return load_pretrained(kind, folder, part, error=WorldModelError, what=what, **options)

        vae = load_part(AutoencoderKLWan, folder, "vae", device=device)
        transformer = load_transformer(folder, device=device, compute_dtype=compute_dtype)
        # float32 as its model card has it: it is one image
        image_encoder = load(CLIPVisionModel, "image_encoder", dtype=torch.float32, use_safetensors=True)
        # the one that runs on Pillow: the other rounds differently, and whether it is there depends on torchvision
        image_processor = load(CLIPImageProcessorPil, "image_processor")
        torch.nn.Module.to(image_encoder, torch.device(device))
        return cls(vae, transformer, load_scheduler(folder), image_encoder, image_processor, text=text)

    def offload(self, device: str, *, pinned: bool) -> None:
        """As `Offloadable` has it."""
        torch.nn.Module.to(self.image_encoder, torch.device(device))
        super().offload(device, pinned=pinned)

    def image_tokens(self, images: Tensor) -> Tensor:
        """CLIP's tokens of each image: its last layer but one."""
        pictures = [to_image(image) for image in images.cpu()]
        pixels = self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        hidden = self.image_encoder(pixels.to(self.device), output_hidden_states=True).hidden_states
        return hidden[-2].to(self.dtype)
