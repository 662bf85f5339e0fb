"""TheWorld: a frozen language model that reads a rollout in front of its prompt.

Axes:  B sample   L text token   N world token   S = L + N   C, T, H, W latent axes   E the language model's width
       A labelled position, over the whole batch   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ...pipeline.errors import ConfigError, LatentShapeError
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.tensors import as_tensor, draw_posterior
from ...pipeline.latents.world_model import WorldModel
from .attention import without_flex
from .live_latents import roll_out_images
from .lm_inputs import has_inputs_by_layer, run_rows, vector_inputs, without_lora
from .memory import SCORED_AT_ONCE
from .sampling import continue_text, draw_token
from .tokens import WorldReader

IGNORED = -100
"""The label of positions without a loss."""
Latents = Float[Tensor, "B C T H W"] | Shaped[np.ndarray, "B C T H W"]


@dataclass
class WorldOutput(ModelOutput):
    """The result of `TheWorld.forward`, used as any output of transformers: `out.logits`, `out["logits"]`, `out[0]`."""

    loss: Tensor | None = None
    """Mean cross-entropy over the labelled tokens; None without labels, and then no part of the tuple."""
    logits: Tensor | None = None
    """(B, S, V) without labels; with labels (A, V), at the positions that predict a labelled token, row by row."""


class TheWorld(nn.Module):
    """`[bos, world tokens, text]` through a frozen language model. Trained: the reader, and LoRA where there is one."""

    accepts_loss_kwargs = False  # tells transformers' Trainer that the loss is a mean over this batch

    def __init__(
        self,
        lm: nn.Module,
        reader: WorldReader,
        *,
        num_world_steps: int = 4,
        max_world_steps: int = 16,
        world: WorldModel | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        """
        Args:
            lm: a causal language model of transformers, bare or with peft's LoRA; its own weights are frozen here.
            num_world_steps: rollout steps to read by default; 0 is the observed frame alone.
            max_world_steps: the most any call may ask for; at most the reader's.
            world, recipe: the world model and recipe to roll images forward live. Cached latents need neither.
        Raises:
            ConfigError: the numbers of steps contradict each other.
        """
        super().__init__()
        if not 0 <= num_world_steps <= max_world_steps <= reader.max_world_steps:
            raise ConfigError(
                f"need 0 <= num_world_steps <= max_world_steps <= the reader's {reader.max_world_steps}, "
                f"got {num_world_steps} and {max_world_steps}"
            )
        self.lm: Any = lm  # transformers types its models' attributes as Tensor | Module
        self.reader = reader
        self.num_world_steps = num_world_steps
        self.max_world_steps = max_world_steps
        object.__setattr__(self, "world", world)  # not a submodule: never trained, moved or saved with this one
        self.recipe = recipe
        for name, parameter in lm.named_parameters():
            parameter.requires_grad_("lora_" in name or ".modules_to_save." in name)

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Temporal embedding, projector and LoRA, by name."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        labels: Int[Tensor, "B L"] | None = None,
        *,
        segments: Int[Tensor, "B L"] | None = None,
        latents: Latents | None = None,
        pixel_values: Float[Tensor, "B 3 _ _"] | None = None,
        images: Num[Tensor, "B 3 height width"] | None = None,
        keys: Sequence[str] | None = None,
        num_world_steps: int | None = None,
        return_dict: bool = True,
    ) -> WorldOutput | tuple[Any, ...]:
        """Logits and loss of a batch, with or without world tokens in front of the text.

        Without latents and images the language model gets the ids alone, and its logits are its own, bit by bit.

        Args:
            input_ids: text, starting with <bos>, padded on the right.
            attention_mask: 1 on text, 0 on padding.
            labels: the ids to learn, `IGNORED` elsewhere, at the positions of these ids; they are shifted by one here.
            segments: for several texts in one row: 0 on <bos>, n on the n-th text. Each text gets the logits it would
                get alone: it sees <bos>, the world and itself, at the positions it would have.
            latents: standardised rollouts of at least 1 + num_world_steps frames, any float dtype; a tensor, or what a
                store's `read` returns.
            pixel_values: each row's image, prepared for a multimodal model's vision tower (data/vision.py); its
                tokens stand where the text marks their place.
            images: RGB in [-1, 1], to be rolled forward live, in place of latents.
            keys: the content keys of `images`; they seed the noise.
            num_world_steps: rollout steps to read in this call; None is the model's default.
            return_dict: without, the result is a tuple: the loss where there are labels, and the logits.
        Raises:
            ConfigError: more steps than max_world_steps; images without a world model; both images and latents; pixels
                for a language model without vision, or no pixels for text that marks their place; images that are not
                in [-1, 1]; latents or images with text that does not start with <bos>; labels that are all ignored.
            LatentShapeError: the latents hold fewer steps than asked for, or rows do not start with text.
        """
        world = self._world_latents(latents, images, keys, num_world_steps)
        if labels is None:
            output = WorldOutput(logits=self._run(input_ids, attention_mask, world, segments, pixel_values).logits)
        else:
            logits, targets, _ = self._labelled(input_ids, attention_mask, labels, world, segments, pixel_values)
            output = WorldOutput(nn.functional.cross_entropy(logits.float(), targets), logits)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def log_likelihood(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        labels: Int[Tensor, "B L"],
        *,
        segments: Int[Tensor, "B L"] | None = None,
        latents: Float[Tensor, "B C T H W"] | None = None,
        pixel_values: Float[Tensor, "B 3 _ _"] | None = None,
        num_world_steps: int | None = None,
    ) -> Float[Tensor, " texts"]:
        """Log-probability of each text: the sum, not the mean, over its labelled tokens.

        A text is a row or, with `segments` as in `forward`, a segment. Texts are ordered by row; each needs a label.
        """
        world = self._world_latents(latents, None, None, num_world_steps)
        logits, targets, rows = self._labelled(input_ids, attention_mask, labels, world, segments, pixel_values)
        some = zip(logits.split(SCORED_AT_ONCE), targets.split(SCORED_AT_ONCE), strict=True)
        log_p = torch.cat([part.float().log_softmax(-1).gather(1, ids[:, None])[:, 0] for part, ids in some])
        texts, count = rows, input_ids.shape[0]
        if segments is not None:
            row, position = (labels[:, 1:] != IGNORED).nonzero().unbind(1)  # in the order of `targets`
            numbers = row * (1 + segments.max()) + segments[row, position + 1]
            texts = torch.unique_consecutive(numbers, return_inverse=True)[1]
            count = int(texts[-1]) + 1
        return log_p.new_zeros(count).index_add_(0, texts, log_p)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        end_id: int | Sequence[int],
        latents: Latents | None = None,
        images: Num[Tensor, "B 3 height width"] | None = None,
        keys: Sequence[str] | None = None,
        pixel_values: Float[Tensor, "B 3 _ _"] | None = None,
        num_world_steps: int | None = None,
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> Int[Tensor, "R M"]:
        """Continuation up to `end_id`: the new ids alone, M <= max_new_tokens. R is B, or as many times more as the
        option `num_return_sequences` says.

        Args:
            latents, images, keys, pixel_values, num_world_steps: as of `forward`.
            end_id: one token that ends a text, or several; shorter rows are filled up with the first of them.
            temperature: of the tokens' probabilities, from which each is drawn; 0 takes the likeliest.
            top_p: draw only among the likeliest tokens that have this probability together.
            seed: of the draws. The same batch and seed give the same text.
            options: further arguments of transformers' `generate`, such as `num_beams`. With any, its sampling is used:
                the same seed gives the same text, but another one than without.
        Raises:
            ConfigError: as of `forward`; or options for a multimodal model or a Gemma-4, for which transformers takes
                no vectors.
        """
        ends = [end_id] if isinstance(end_id, int) else list(end_id)
        is_ours = self._has_vision or has_inputs_by_layer(self.lm)
        if options and is_ours:
            raise ConfigError(
                f"{type(without_lora(self.lm)).__name__} takes max_new_tokens, temperature, top_p and seed alone, not "
                f"{', '.join(options)}"
            )
        world = self._world_latents(latents, images, keys, num_world_steps)
        vectors, mask = self.embed(input_ids, attention_mask, world, pixel_values)
        # New tokens must follow the text without a gap: turn each row until its padding is on the left.
        turn = (torch.arange(mask.shape[1], device=mask.device) + mask.sum(1, keepdim=True)) % mask.shape[1]
        vectors, mask = vectors.take_along_dim(turn[..., None], 1), mask.take_along_dim(turn, 1)
        if is_ours or (temperature and not options):
            inputs = vector_inputs(self.lm, vectors, self._row_ids(input_ids, mask.shape[1]).take_along_dim(turn, 1))
            if self._has_vision:
                inputs["token_type_ids"] = self._image_places(input_ids, mask.shape[1]).take_along_dim(turn, 1).long()
            choose = partial(
                draw_token, temperature=temperature, top_p=top_p, generator=torch.Generator().manual_seed(seed)
            )
            with without_flex(self.lm):
                return continue_text(self.lm, inputs, mask, ends, max_new_tokens, choose)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos_token_id": ends, "pad_token_id": ends[0]}
        settings |= {"do_sample": bool(temperature)}
        if temperature:
            settings |= {"temperature": temperature, "top_p": top_p}
        if (config := options.get("generation_config")) is not None:  # transformers takes one of both alone
            options["generation_config"] = config = deepcopy(config)
            config.update(**settings)
            settings = {}
        with without_flex(self.lm), torch.random.fork_rng(enabled=bool(temperature)):
            if temperature:
                torch.manual_seed(seed)
            return self.lm.generate(inputs_embeds=vectors, attention_mask=mask, **settings, **options)

    def embed(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        latents: Float[Tensor, "B C T H W"] | None,
        pixel_values: Float[Tensor, "B 3 _ _"] | None = None,
    ) -> tuple[Float[Tensor, "B S E"], Int[Tensor, "B S"]]:
        """Embedding vectors of `[bos, world, text]` and their attention mask; without latents, of the text alone."""
        text = self._text(input_ids, pixel_values)
        if latents is None:
            return text, attention_mask
        if not bool(attention_mask[:, 0].all()):
            raise LatentShapeError("world tokens stand behind <bos>: rows must start with text; pad on the right")
        bos = self.lm.config.get_text_config().bos_token_id
        if bos is not None and not bool((input_ids[:, 0] == bos).all()):
            raise ConfigError(
                f"world tokens stand behind <bos>, and not every row of input_ids starts with its id {bos}: the world "
                "would stand behind the first word. Put <bos> in front, as LanguageModel.prompt_ids does"
            )
        if len(latents) != len(input_ids):
            raise LatentShapeError(f"{len(input_ids)} rows of text have {len(latents)} rollouts: pass one for each row")
        world = self.reader(latents).to(text.dtype)
        mask = attention_mask.new_ones(world.shape[:2])
        return (
            torch.cat([text[:, :1], world, text[:, 1:]], dim=1),
            torch.cat([attention_mask[:, :1], mask, attention_mask[:, 1:]], dim=1),
        )

    def _text(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Embedding vectors of the text, with the vision tower's tokens where the text marks their place."""
        self._check_pixels(input_ids, pixel_values)
        if pixel_values is None:
            return self.lm.get_input_embeddings()(input_ids)
        is_image = self._image_places(input_ids, input_ids.shape[1])
        text = self.lm.get_input_embeddings()(input_ids.masked_fill(is_image, 0))  # the marker may be out of vocabulary
        with torch.no_grad():
            features = self.lm.get_image_features(pixel_values.to(self.lm.dtype), return_dict=True).pooler_output
        return text.masked_scatter(is_image[..., None], features.to(text.dtype))

    def _check_pixels(self, input_ids: Tensor, pixel_values: Tensor | None) -> None:
        if pixel_values is not None and not self._has_vision:
            raise ConfigError(f"{type(without_lora(self.lm)).__name__} has no vision tower: leave out pixel_values")
        if pixel_values is None and self._has_vision and bool(self._image_places(input_ids, input_ids.shape[1]).any()):
            raise ConfigError("the text marks the place of an image: pass its pixel_values")

    @property
    def _has_vision(self) -> bool:
        return getattr(self.lm.config, "vision_config", None) is not None

    def _image_places(self, input_ids: Tensor, length: int) -> Tensor:
        """Where image tokens are, as a mask (B, length) that has room for world tokens in front."""
        is_image = torch.zeros_like(input_ids).bool()
        if self._has_vision:
            is_image = input_ids == self.lm.config.image_token_id
        return nn.functional.pad(is_image, (length - input_ids.shape[1], 0))  # <bos>, before the world, is none of them

    def _run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        latents: Tensor | None,
        segments: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        keep: Tensor | None = None,
    ) -> Any:
        if latents is None and pixel_values is None:
            self._check_pixels(input_ids, None)
            inputs, mask = {"input_ids": input_ids}, attention_mask
        else:
            vectors, mask = self.embed(input_ids, attention_mask, latents, pixel_values)
            inputs = vector_inputs(self.lm, vectors, self._row_ids(input_ids, mask.shape[1]))
        is_image = None if pixel_values is None else self._image_places(input_ids, mask.shape[1])
        if segments is not None:
            segments = nn.functional.pad(segments, (mask.shape[1] - segments.shape[1], 0))  # shared, as <bos> is
        return run_rows(self.lm, inputs, mask, segments, is_image=is_image, keep=keep)

    def _row_ids(self, input_ids: Tensor, length: int) -> Tensor:
        """The ids of whole rows, (B, length), with padding where world tokens stand."""
        pad = self.lm.config.get_text_config().pad_token_id or 0
        world = input_ids.new_full((len(input_ids), length - input_ids.shape[1]), pad)
        return torch.cat([input_ids[:, :1], world, input_ids[:, 1:]], dim=1)

    def _labelled(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        latents: Tensor | None,
        segments: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (A, V) where the next token is labelled, that token (A), its row in the batch (A).

        The output head runs on these positions alone: with Gemma's 256,000 words and 4,000 world tokens it would
        otherwise take most of the memory. The loss is the same (tested).
        """
        labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # position i predicts token i + 1
        if latents is not None:  # the last world token takes the place of <bos>; all others move back
            count = self.reader.count(*latents.shape[2:])
            labels = nn.functional.pad(labels, (count, 0), value=IGNORED)
        keep = labels != IGNORED
        if not bool(keep.any()):
            raise ConfigError(
                f"all labels are {IGNORED}, so there is nothing to learn: label the tokens of the answer with their ids"
            )
        logits = self._run(input_ids, attention_mask, latents, segments, pixel_values, keep=keep).logits
        return logits, labels[keep], keep.nonzero()[:, 0]

    def _world_latents(
        self,
        latents: Tensor | NDArray[Any] | None,
        images: Tensor | None,
        keys: Sequence[str] | None,
        num_world_steps: int | None,
    ) -> Tensor | None:
        """The frames to read; None without latents and images."""
        if isinstance(latents, np.ndarray):
            latents = as_tensor(latents).to(next(self.reader.parameters()).device)
        if latents is not None and images is not None:
            raise ConfigError("got both latents and images: pass the cached rollout, or the image to roll out")
        if latents is None and images is None:
            if num_world_steps is not None:
                raise ConfigError(f"num_world_steps={num_world_steps} without latents or images: nothing to read")
            return None
        steps = self.num_world_steps if num_world_steps is None else num_world_steps
        if not 0 <= steps <= self.max_world_steps:
            raise ConfigError(
                f"num_world_steps={steps} is outside 0 … max_world_steps={self.max_world_steps}: the temporal "
                "embedding has no entry for it. Ask for fewer steps, or train with a larger max_world_steps"
            )
        if latents is None:
            assert images is not None
            latents = self._roll_out(images, keys, steps)
        elif latents.ndim != 5:
            raise LatentShapeError(
                f"latents are (B, C, T, H, W), one rollout for each row, got {tuple(latents.shape)}. Of one rollout: "
                "latents[None]"
            )
        elif latents.shape[2] < 1 + steps:
            raise LatentShapeError(
                f"these latents hold {latents.shape[2] - 1} rollout steps, {steps} are asked for. "
                "Ask for fewer, or precompute longer rollouts"
            )
        latents = latents[:, :, : 1 + steps]
        if steps and self.recipe is not None and self.recipe.traits.is_distribution:
            return draw_posterior(latents) if self.training else latents[:, :, :1]
        return latents

    @torch.no_grad()
    def _roll_out(self, images: Tensor, keys: Sequence[str] | None, steps: int) -> Tensor:
        """The latents that a store of this recipe would hold, rounded to its dtype."""
        world: WorldModel | None = self.world  # type: ignore[assignment]
        if world is None or self.recipe is None:
            raise ConfigError("images need a world model and a recipe to roll them out: pass both to TheWorld(...)")
        latents = roll_out_images(world, self.recipe, images, keys, steps)
        return latents.to(next(self.reader.parameters()).device)
