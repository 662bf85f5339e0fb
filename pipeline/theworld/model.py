"""`theworld.TheWorld`: a language model that sees what happens next, with its world model, tokenizer and files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor

from theworld.pipeline.errors import ConfigError, RunError
from theworld.pipeline.files.hub import fetch, is_hub_id
from theworld.pipeline.files.limits import MAX_RESULT_BYTES
from theworld.pipeline.files.plain import read_file
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.machine import DeviceName, resolve_device
from theworld.pipeline.progress import print_lines
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.recipe import make_recipe
from theworld.precompute.live.world import LiveWorld
from theworld.precompute.preview.latent_decoder import place_of
from theworld.precompute.worlds.source import find_autoencoder, resolve_world
from theworld.train.config import DtypeName, TrainConfig
from theworld.train.evaluation.answer import Ranked, ask
from theworld.train.language.lm import LanguageModel, add_lora, load_language_model
from theworld.train.language.weights import find_weights
from theworld.train.reader.layouts import LayoutName
from theworld.train.reader.model import TheWorld as Reader
from theworld.train.runs import hub
from theworld.train.runs.folder import LoadedRun, build_reader, load_run, resolve_dtype, save_run
from theworld.train.runs.meta import (
    META,
    METRICS,
    LMFacts,
    QuestionFacts,
    ReaderFacts,
    RunMeta,
    StoreFacts,
    versions,
)

from .processor import Picture, Processor

_NOTHING = sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What stands behind a model."""

    lm: LanguageModel
    meta: RunMeta
    path: Path
    """The run folder; a name for messages where there is none yet."""
    world: str | None
    """Where the world model lies; None is what the recipe names."""
    device: DeviceName


class TheWorld(Reader):
    """A language model that sees what happens next: from images and text to logits, answers and a run folder.

    `from_pretrained` makes one; `theworld.train.TheWorld` is the module inside, for loops of your own.
    """

    _known: _Parts

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        world: str | None = None,
        lm: str | None = None,
        num_world_steps: int | None = None,
        max_world_steps: int | None = None,
        layout: LayoutName | None = None,
        size: str | None = None,
        device: DeviceName = "auto",
        dtype: DtypeName | None = None,
        seed: int = 0,
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
            device, dtype: of the language model; None is the run's dtype, else `auto`.
            seed: of the first weights of what is yet to be trained.
        Returns:
            The model in eval mode.
        Raises:
            ConfigError, RunError, WorldModelError: one of them cannot be found or loaded, or does not fit.
        """
        name = os.fspath(source)
        fixed = {"max_world_steps": max_world_steps, "layout": layout, "size": size}
        run = _find_run(name)
        if run is None:
            if lm is not None:
                raise ConfigError(f"{name} is no run but a language model, so lm={lm!r} has no meaning: leave it out")
            return cls._untrained(name, world, num_world_steps, fixed, device, dtype or "auto", seed)
        if stated := [key for key, value in fixed.items() if value is not None]:
            raise ConfigError(f"{', '.join(stated)}: decided when {name} was trained; leave out")
        loaded = load_run(run, lm=lm, device=device, dtype=dtype)
        return cls._of(_Parts(loaded.lm, loaded.meta, run, world, device), loaded.model.reader, num_world_steps)

    @classmethod
    def _untrained(
        cls,
        name: str,
        world: str | None,
        steps: int | None,
        fixed: dict[str, Any],
        device: DeviceName,
        dtype: DtypeName,
        seed: int,
    ) -> Self:
        weights = find_weights(None if name == "worldlet" else name)
        where = resolve_device(device)
        steps = 4 if steps is None else steps
        source = resolve_world(world)
        recipe = make_recipe(
            PrecomputeConfig(world=source.name if world is None else world, steps=steps, size=fixed["size"]), source
        )
        channels, _, height, width = source.latent_spec().sample_shape(recipe.height, recipe.width, steps)
        chosen = {name: value for name, value in fixed.items() if value is not None and name != "size"}
        config = TrainConfig(store=Path(), questions=Path(), seed=seed, **chosen)
        form = config.token_layout()
        form.grid(height, width)
        base = load_language_model(weights, device=where, dtype=resolve_dtype(dtype, where))
        facts = ReaderFacts.of_layout(
            form,
            latent_shape=(channels, height, width),
            hidden_size=base.hidden_size,
            max_world_steps=config.max_world_steps,
            num_world_steps=steps,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reader = build_reader(facts, base).to(where)
            adapted = add_lora(base, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
        meta = RunMeta(
            recipe=recipe, recipe_id=recipe.id,
            store=StoreFacts(path="", shards=0, samples=0, keys_sha256=_NOTHING),
            lm=LMFacts(source=weights.source, identity=weights.identity),
            reader=facts,
            questions=QuestionFacts(path="", sha256=_NOTHING, train=0),
            config={"dtype": dtype, "batch_size": 0, "seed": seed}, versions=versions(), created="",
        )  # fmt: skip
        return cls._of(_Parts(adapted, meta, Path(name), world, device), reader, steps)

    @classmethod
    def _of(cls, parts: _Parts, reader: Any, steps: int | None) -> Self:
        facts = parts.meta.reader
        model = cls(
            parts.lm.model,
            reader,
            num_world_steps=facts.num_world_steps if steps is None else steps,
            max_world_steps=facts.max_world_steps,
            recipe=parts.meta.recipe,
        )
        model._known = parts
        return model.eval()

    @cached_property
    def processor(self) -> Processor:
        """Texts and pictures to a batch."""
        parts = self._parts()
        return Processor(parts.lm, parts.meta.recipe, self._spec, self.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.reader.parameters()).device

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        max_new_tokens: int = 16,
        do_sample: bool = False,
        temperature: float = 1.0,
        **inputs: Any,
    ) -> Int[Tensor, "B M"]:
        """New ids of an answer to each row, M <= max_new_tokens; `processor.batch_decode` makes texts of them.

        Args:
            do_sample: draw each token from the model's probabilities at this temperature; without, the likeliest.
            inputs: latents, or images and keys, and num_world_steps, as of `forward`; top_p and seed; and
                other generation arguments of transformers, such as num_beams.
        Raises:
            ConfigError, LatentShapeError: as of `forward`.
        """
        return super().generate(
            input_ids,
            attention_mask,
            end_id=sorted(self._parts().lm.end_ids),
            max_new_tokens=max_new_tokens,
            temperature=temperature if do_sample else 0.0,
            **inputs,
        )

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
            ConfigError: neither, both, or choices that are not two different ones.
        """
        parts, steps = self._parts(), self.num_world_steps if num_world_steps is None else num_world_steps
        picture: Path | None = None
        if (images is None) == (latents is None):
            raise ConfigError("rank takes images= or latents=, one of them")
        if images is not None:
            batch = self.processor(question, images)
            latents = self._world_latents(None, batch["images"], batch["keys"], steps)
            picture = Path(images) if isinstance(images, str | os.PathLike) else None
        run = LoadedRun(parts.path, self, parts.lm, parts.meta, self.device)
        return ask(run, latents, question, choices, steps=steps, image=picture).ranked

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a run folder: adapters, reader, theworld.json. `from_pretrained`, `ask` and peft read it.

        Raises:
            OSError: it cannot be written.
        """
        parts, path = self._parts(), Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_run(path, self, parts.meta)
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
        if self.world is None:  # loaded when it is first wanted
            parts = self._parts()
            live = LiveWorld.for_recipe(parts.meta.recipe, world=parts.world, device=parts.device)
            object.__setattr__(self, "world", live.world)
        return super()._roll_out(images, keys, steps)

    def _spec(self) -> LatentSpec:
        parts = self._parts()  # by its configs: to resolve a folder is to hash all its weights
        return find_autoencoder(place_of(parts.meta.recipe, parts.world)).latent_spec()

    def _parts(self) -> _Parts:
        if "_known" not in self.__dict__:
            raise ConfigError("this model was made by hand; TheWorld.from_pretrained makes one that knows its files")
        return self._known


def _find_run(name: str) -> Path | None:
    """The folder of a run; None where the name is that of a language model."""
    path = Path(name)
    if path.is_dir() or not is_hub_id(name):
        return path if (path / META).is_file() else None
    snapshot = fetch(
        name,
        [*hub.WEIGHTS, *hub.TEXTS],
        error=RunError,
        instead="name a folder",
    )
    return snapshot.folder if (snapshot.folder / META).is_file() else None
