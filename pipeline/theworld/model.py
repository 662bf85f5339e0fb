"""`theworld.TheWorld`: a language model that sees what happens next, with its world model, tokenizer and files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files.limits import MAX_RESULT_BYTES
from theworld.pipeline.files.plain import read_file
from theworld.pipeline.progress import print_lines
from theworld.precompute.live.world import LiveWorld
from theworld.train.data.arms import Arm, arm_of_run
from theworld.train.data.doubt import as_doubted
from theworld.train.evaluation.answer import Ranked, ask, read_asked
from theworld.train.language.prompt_format import TokenizerOnly
from theworld.train.reader.layouts import LayoutName
from theworld.train.reader.model import TheWorld as Reader
from theworld.train.reader.tokens import WorldReader
from theworld.train.runs import hub
from theworld.train.runs.folder import LoadedRun, save_run
from theworld.train.runs.meta import METRICS

from .build import Device, Parts, find_run, one_device, parts_of_run, parts_untrained, require_settings, with_revision
from .generation import generation_options
from .processor import Picture, Processor, keys_of_pixels, latent_spec_of
from .tied_weights import name_weights_once


class TheWorld(Reader):
    """A language model that sees what happens next: from images and text to logits, answers and a run folder.

    `from_pretrained` makes one; `theworld.train.TheWorld` is the module inside, for loops of your own.
    """

    _loaded_parts: Parts

    def __init__(
        self,
        lm: nn.Module | None = None,
        reader: WorldReader | None = None,
        *,
        gemma_model_name: str | None = None,
        num_world_steps: int = 4,
        max_world_steps: int = 16,
        **settings: Any,
    ) -> None:
        """`TheWorld(gemma_model_name="google/gemma-2-2b-it")` is what `from_pretrained` makes of a language model.

        Args:
            lm, reader: instead, the parts of a module made by hand, with the settings of `theworld.train.TheWorld`.
            num_world_steps, max_world_steps, settings: as of `from_pretrained`.
        """
        steps = {"num_world_steps": num_world_steps, "max_world_steps": max_world_steps}
        if gemma_model_name is not None and lm is None and reader is None:
            self._adopt(parts_untrained(gemma_model_name, **steps, **settings), num_world_steps)
        elif isinstance(lm, nn.Module) and reader is not None and gemma_model_name is None:
            super().__init__(lm, reader, **steps, **settings)
            name_weights_once(self)
        else:
            raise ConfigError(
                "TheWorld takes gemma_model_name=NAME, or a language model and a reader as modules. "
                'TheWorld.from_pretrained("runs/1") loads a trained run'
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        world: str | os.PathLike[str] | None = None,
        lm: str | os.PathLike[str] | None = None,
        num_world_steps: int | None = None,
        max_world_steps: int | None = None,
        layout: LayoutName | None = None,
        size: str | None = None,
        device: Device | None = None,
        device_map: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        revision: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """A trained run, or a language model with a reader that is yet to be trained.

        Args:
            source: a run folder; ORG/NAME of a run on the Hugging Face Hub; or a language model: `worldlet`, a folder,
                ORG/NAME such as google/gemma-2-2b-it.
            world: the world model, as of `theworld precompute --world`. None is the run's own, else the embedded one.
            lm: of a run, where its base language model lies now.
            num_world_steps: rollout steps read by default; None is the run's, else 4.
            max_world_steps: the most that a call may ask for; 16 by default. A run's is fixed.
            layout: how latents become tokens; `patch` by default. A run's is fixed.
            size: HEIGHTxWIDTH of the images; None is the world model's. A run's is fixed.
            device: auto (by default), cpu, cuda or cuda:1. device_map: the same, by transformers' name.
            dtype: of the language model: auto, float32, bfloat16 or torch's own; None is the run's, else auto.
                torch_dtype: the same, by an older name.
            revision: branch, tag or commit of `source` on the Hub.
            seed: of the first weights of what is yet to be trained.
            settings: more of what is decided before a training, such as patch, queries and lora_rank. A run's are
                fixed.
        Returns:
            The model in eval mode.
        Raises:
            ConfigError, RunError, WorldModelError: one of them cannot be found or loaded, or does not fit.
        """
        name = os.fspath(source)
        device = one_device(device, device_map)
        if dtype is not None and torch_dtype is not None:
            raise ConfigError("dtype and torch_dtype say the same: pass one of them")
        loading: dict[str, Any] = {"device": device, "dtype": torch_dtype if dtype is None else dtype}
        loading["world"] = None if world is None else os.fspath(world)
        fixed = {"max_world_steps": max_world_steps, "layout": layout, "size": size, **settings}
        require_settings(settings)
        model, run = cls.__new__(cls), find_run(name, revision)
        if run is None:
            if lm is not None:
                raise ConfigError(f"{name} is no run but a language model, so lm={lm!r} has no meaning: leave it out")
            name = with_revision(name, revision)
            model._adopt(parts_untrained(name, num_world_steps=num_world_steps, seed=seed, **fixed, **loading), None)
        else:
            if stated := [key for key, value in fixed.items() if value is not None]:
                raise ConfigError(f"{', '.join(stated)}: decided when {name} was trained; leave out")
            parts = parts_of_run(run, lm=None if lm is None else os.fspath(lm), **loading)
            model._adopt(parts, num_world_steps)
        return model

    def _adopt(self, parts: Parts, steps: int | None) -> None:
        facts = parts.meta.reader
        super().__init__(
            parts.lm.model,
            parts.reader,
            num_world_steps=facts.num_world_steps if steps is None else steps,
            max_world_steps=facts.max_world_steps,
            recipe=parts.meta.recipe,
        )
        self._loaded_parts = parts
        name_weights_once(self.eval())

    @cached_property
    def processor(self) -> Processor:
        """Texts and pictures to a batch."""
        parts = self._parts()
        # without the weights, so that a worker of a DataLoader may have it
        prompts = TokenizerOnly(parts.lm.tokenizer, parts.lm.weights, parts.lm.settings, parts.lm.generation_ends)
        return Processor(prompts, parts.meta.recipe, partial(latent_spec_of, parts.meta.recipe, parts.world))

    @cached_property
    def _arm(self) -> Arm:
        return arm_of_run(self._parts().meta.config)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.reader.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model; what is trained stays float32."""
        return self.lm.get_input_embeddings().weight.dtype

    @property
    def config(self) -> Any:
        """The language model's `PreTrainedConfig`."""
        return self.lm.config

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        more: Tensor | None = None,
        *,
        images: Tensor | None = None,
        input_pixels: Tensor | None = None,
        keys: Sequence[str] | None = None,
        **inputs: Any,
    ) -> Any:
        """Logits and loss of a batch: `model(**model.processor(text, images))`, or `model(input_pixels, input_ids,
        attention_mask)`.

        Args:
            input_ids, attention_mask, labels: as of `theworld.train.TheWorld`; where the first is an image, the others
                follow it in this order. Without a mask, what is not padding is text.
            images: RGB in [-1, 1], (B, 3, height, width). input_pixels: the same.
            keys: of the images, which decide the noise of a rollout. None are keys of these pixels: then the rollout is
                another than that of a store, which has keys of files.
            inputs: latents, num_world_steps, pixel_values, segments and return_dict, as of `theworld.train.TheWorld`.
        Returns:
            `WorldOutput`, of transformers' kind: loss and logits.
        Raises:
            ConfigError, LatentShapeError: as of `theworld.train.TheWorld`.
        """
        if input_ids.ndim == 4:
            if images is not None or input_pixels is not None or attention_mask is None:
                raise ConfigError("the first argument is an image: model(input_pixels, input_ids, attention_mask)")
            images, input_ids, attention_mask, labels = input_ids, attention_mask, labels, more
        elif more is not None:
            raise ConfigError(
                "a fourth argument is the labels of model(input_pixels, input_ids, attention_mask, labels)"
            )
        inputs_here = self._inputs(input_ids, attention_mask, images, input_pixels, keys, inputs)
        return super().forward(labels=None if labels is None else labels.to(self.device), **inputs_here)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        images: Tensor | None = None,
        input_pixels: Tensor | None = None,
        keys: Sequence[str] | None = None,
        latents: Any = None,
        pixel_values: Tensor | None = None,
        num_world_steps: int | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        generation_config: Any = None,
        **options: Any,
    ) -> Any:
        """New ids of an answer to each row; `processor.batch_decode` makes texts of them.

        Args:
            input_ids, attention_mask, images, input_pixels, keys, latents, pixel_values, num_world_steps: as of
                `forward`.
            max_new_tokens: 16 by default.
            do_sample: draw each token at this temperature (1 by default) among those of top_p; without, the likeliest.
            seed: of the draws; None takes one from torch's generator, which `torch.manual_seed` sets.
            generation_config: its values, where they are not given here.
            options: other arguments of transformers' `generate`: num_beams, streamer, stopping_criteria, …
        Returns:
            Ids (B, M), M <= max_new_tokens, without those of the prompt.
        Raises:
            ConfigError, LatentShapeError: as of `forward`; or what cannot be done.
        """
        if not isinstance(input_ids, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"generate takes what processor(text=…, images=…) returns, by name: generate(**inputs), got "
                f"{type(input_ids).__name__}"
            )
        named = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, "temperature": temperature, "top_p": top_p}
        how = generation_options(named, generation_config, options)
        text = self._inputs(input_ids, attention_mask, images, input_pixels, keys, {"latents": latents})
        return super().generate(
            **text,
            pixel_values=None if pixel_values is None else pixel_values.to(self.device),
            num_world_steps=num_world_steps,
            end_id=sorted(self._parts().lm.end_ids),
            seed=int(torch.randint(2**31, (1,))) if seed is None else seed,
            **how,
        )

    def _inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        images: Tensor | None,
        input_pixels: Tensor | None,
        keys: Sequence[str] | None,
        others: dict[str, Any],
    ) -> dict[str, Any]:
        """What the reader's own calls take, where it is."""
        if images is not None and input_pixels is not None:
            raise ConfigError("images and input_pixels are the same: pass one of them")
        images = input_pixels if images is None else images
        if images is not None:
            keys = keys_of_pixels(images) if keys is None else keys
            others = {**others, "images": images, "keys": keys}
        if attention_mask is None:
            lm = self._parts().lm
            attention_mask = (input_ids != lm.pad_id).long()
            if lm.pad_id == lm.tokenizer.bos_token_id:  # as Qwen's: the first one is none
                attention_mask[:, 0] = 1
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask, **others}
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in tensors.items()}

    def _world_latents(
        self, latents: Any, images: Tensor | None, keys: Sequence[str] | None, num_world_steps: int | None
    ) -> Tensor | None:
        """The frames to read, as the arm that the run was trained on shows them."""
        if self._arm.kind == "doubt" and (latents is None) != (images is None):
            steps = self.num_world_steps if num_world_steps is None else num_world_steps
            if images is not None:
                latents = self._roll_out(images, keys, self._arm.needed_steps(steps, self.recipe))
            latents, images, keys = as_doubted(latents, self.recipe, steps), None, None
        return super()._world_latents(latents, images, keys, num_world_steps)

    def rank(
        self,
        question: str,
        choices: Sequence[str],
        *,
        images: Picture | None = None,
        latents: Any = None,
        num_world_steps: int | None = None,
    ) -> tuple[Ranked, ...]:
        """The choices with their probabilities, the likeliest first, as `theworld ask` ranks them.

        Args:
            images: one picture, rolled forward here. latents: of one image, (1, C, T, H, W), in place of it.
        Raises:
            ConfigError: neither, both, several questions, or choices that are not two different ones.
        """
        parts, steps = self._parts(), self.num_world_steps if num_world_steps is None else num_world_steps
        picture = Path(images) if isinstance(images, str | os.PathLike) else None
        if not isinstance(question, str) or (images is None) == (latents is None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError("rank takes one question as a text, and images= or latents=, one of them")
        reader = Reader(self.lm, self.reader, num_world_steps=steps, max_world_steps=self.max_world_steps)
        run = LoadedRun(parts.path, reader.train(self.training), parts.lm, parts.meta, self.device)
        if images is not None:
            read_asked(run, question, choices).require_room(run, steps)
            batch = self.processor(question, images)
            latents = self._roll_out(batch["images"], batch["keys"], self._arm.needed_steps(steps, parts.meta.recipe))
        return ask(run, latents, question, choices, steps=steps, image=picture).ranked

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a run folder: adapters, reader, theworld.json. `from_pretrained`, `ask` and peft read it.

        Raises:
            OSError: it cannot be written.
        """
        parts, path = self._parts(), Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_run(path, self, parts.meta_with_content)
        metrics = b'{"train_steps": 0, "loss": []}\n'
        if (parts.path / METRICS).is_file():  # of the training it comes from
            metrics = read_file(parts.path / METRICS, MAX_RESULT_BYTES, within=parts.path)
        (path / METRICS).write_bytes(metrics)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload what `save_pretrained` writes, with a card.

        Returns:
            The URL of the repository.
        Raises:
            RunError: the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push(Path(folder), repo_id, private=private)

    def get_trainable_parameters(self) -> tuple[int, int]:
        """Number of trainable parameters, and of all, as peft counts them."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print both numbers."""
        trainable, total = self.get_trainable_parameters()
        print_lines(
            f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}"
        )

    def _roll_out(self, images: Tensor, keys: Sequence[str] | None, steps: int) -> Tensor:
        device = self.device
        with nullcontext() if device.index is None or device.type == "cpu" else torch.cuda.device(device):
            if self.world is None:  # loaded when it is first wanted
                parts = self._parts()
                name = "cpu" if device.type == "cpu" else "cuda"
                live = LiveWorld.for_recipe(parts.meta.recipe, world=parts.world, device=name)
                object.__setattr__(self, "world", live.world)
                object.__setattr__(self, "_world_device", device)
            return super()._roll_out(images.to(getattr(self, "_world_device", device)), keys, steps)

    def _parts(self) -> Parts:
        if "_loaded_parts" not in self.__dict__:
            raise ConfigError("this model was made by hand; TheWorld.from_pretrained makes one that knows its files")
        return self._loaded_parts
