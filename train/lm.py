"""The one door to transformers and peft for language models: find, load, check, adapt, and speak their format.

Lives here: which weights (a folder, a Hub id at a commit, a GGUF file, the embedded worldlet LM), LoRA, prompts as
token ids. Elsewhere: what the model sees before the prompt (tokens.py, model.py), images as it sees them (pictures.py).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ..pipeline.errors import ConfigError, QuestionError
from ..pipeline.weights import fetch, hash_files, is_hub_id
from .config import AttentionName

ARCHITECTURES = {"Gemma2ForCausalLM": "eager", "Gemma3ForCausalLM": "sdpa", "Gemma3ForConditionalGeneration": "sdpa"}
"""The models we have checked, and the attention each computes right. Gemma-2's soft-capping rules out sdpa."""

_EYES = ("vision_tower", "multi_modal_projector")
"""The parts of a multimodal model that look at images; never trained."""

EMBEDDED = Path(__file__).parent / "worldlet" / "weights"
"""The miniature Gemma-2 that ships with the package."""

_PLAIN_PROMPT = "question: {question} answer:"
"""For tokenizers without a chat template; the format the worldlet LM was trained on."""

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]
_PROBE = "Where will the 2 red balls land? Zwölf, 左."
_SAMPLE = 4096  # embedding rows measured for their scale


@dataclass(frozen=True, slots=True)
class Weights:
    """A folder with a language model's files, and which weights they are."""

    folder: Path
    source: str
    """What finds them again: a folder's absolute path, `ORG/NAME@<commit>`, or `worldlet`."""
    identity: str
    """`hub:ORG/NAME@<40 hex commit>`, or `sha256:<64 hex>` of the files that decide what the model says."""
    gguf: str | None = None
    """The file in the folder that holds all, where they are in llama.cpp's format."""


class Speech:
    """How to speak to a language model: its format, its tokens, how much of them it takes."""

    __slots__ = ()
    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    weights: Weights

    @property
    def settings(self) -> Any:
        """Its `PreTrainedConfig`."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Tokens it can attend to."""
        return int(self.settings.get_text_config().max_position_embeddings)

    @property
    def image_tokens(self) -> int:
        """Tokens of its own that it puts an image into; 0 where it sees none."""
        sees = getattr(self.settings, "vision_config", None) is not None
        return int(self.settings.mm_tokens_per_image) if sees else 0

    @property
    def pad_id(self) -> int:
        """The padding token; masked wherever it stands."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0)

    @property
    def end_id(self) -> int:
        """The token that ends an answer: <end_of_turn> in a chat, <eos> otherwise."""
        return self.answer_ids("yes")[-1]

    def prompt_ids(self, question: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids from <bos> to where the answer starts.

        Args:
            before: earlier questions and answers of the same conversation.
        Raises:
            QuestionError: the question spells the language model's own marker of an image.
        """
        if self.tokenizer.chat_template is not None:
            ids = self._ids(self._with_image(self._chat(question, None, before)))
        else:
            asked = [_PLAIN_PROMPT.format(question=one) for one in (*(earlier for earlier, _ in before), question)]
            asked[0] = self._with_image(f"{self.tokenizer.boi_token}{asked[0]}" if self.image_tokens else asked[0])
            ids = [id_ for text, (_, said) in zip(asked, before, strict=False) for id_ in self._turn(text, said)]
            ids += self._ids(asked[-1])
        bos = self.tokenizer.bos_token_id
        if self.image_tokens and ids.count(self.settings.image_token_id) != self.image_tokens:
            raise QuestionError(f"{question!r} holds the image marker of {self.weights.source}: take it out")
        return ids if ids[:1] == [bos] else [bos, *ids]

    def shared(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's first tokens all questions about its image share: <bos>, or all up to the image."""
        return 1 + list(prompt).index(self.settings.eoi_token_id) if self.image_tokens else 1

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer and the token that ends it."""
        if self.tokenizer.chat_template is None:
            return [*self._ids(f" {answer}"), int(self.tokenizer.eos_token_id)]
        prompt, whole = self._chat("?", None), self._chat("?", answer)
        if not whole.startswith(prompt):
            raise ConfigError(
                f"the chat template of {self.weights.source} does not put an answer behind its generation prompt, "
                "so answers cannot be told from prompts. Use a model with Gemma's template, or one without a template"
            )
        return self._ids(whole[len(prompt) :].rstrip())

    def decode(self, ids: list[int]) -> str:
        """The answer these ids spell, without special tokens and what follows the end."""
        end = ids.index(self.end_id) if self.end_id in ids else len(ids)
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` the tokenizer has no token for; a word-level vocabulary knows only what it was made with."""
        unknown = self.tokenizer.unk_token_id
        return [word for word in text.split() if unknown is not None and unknown in self._ids(word)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _turn(self, prompt: str, answer: str) -> list[int]:
        return [*self._ids(prompt), *self.answer_ids(answer)]

    def _chat(self, question: str, answer: str | None, before: Sequence[tuple[str, str]] = ()) -> str:
        turns: list[dict[str, Any]] = []
        for asked, said in (*before, (question, answer)):
            turns.append({"role": "user", "content": asked})
            if said is not None:
                turns.append({"role": "assistant", "content": said})
        if self.image_tokens:
            turns[0]["content"] = [{"type": "image"}, {"type": "text", "text": turns[0]["content"]}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))

    def _with_image(self, text: str) -> str:
        """The text with the image's own tokens where its marker stands, as Gemma3Processor puts them there."""
        if not self.image_tokens:
            return text
        boi, image, eoi = (getattr(self.tokenizer, f"{name}_token", None) for name in ("boi", "image", "eoi"))
        if not (boi and image and eoi and boi in text):
            raise ConfigError(
                f"{self.weights.source} sees images, but its tokenizer names no boi_token, image_token and eoi_token, "
                "or its chat template leaves images out. Use the tokenizer files that come with the model"
            )
        return text.replace(boi, f"\n\n{boi}{image * self.image_tokens}{eoi}\n\n", 1)


@dataclass(frozen=True, slots=True)
class Phrasebook(Speech):
    """How to speak to a language model whose weights are not loaded."""

    tokenizer: Any
    weights: Weights
    config: Any

    @property
    def settings(self) -> Any:
        """Its `PreTrainedConfig`."""
        return self.config


@dataclass(frozen=True, slots=True)
class LanguageModel(Speech):
    """A frozen causal language model (perhaps with LoRA around it) and how to speak to it."""

    model: Any
    """A `PreTrainedModel`, or the `PeftModel` around it: transformers leaves most of their attributes untyped."""
    tokenizer: Any
    weights: Weights

    @property
    def settings(self) -> Any:
        """Its `PreTrainedConfig`."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """Width of its embedding vectors."""
        return int(self.model.get_input_embeddings().weight.shape[1])


def find_weights(lm: str | None) -> Weights:
    """The files of a language model: a folder, a .gguf file, a Hub id (`ORG/NAME` or `ORG/NAME@revision`); None: ours.

    A Hub id is resolved to a commit first, then exactly that commit is fetched, or found in the local cache.

    Raises:
        ConfigError: there is no such folder, no such repository, no access, or no network and nothing cached.
    """
    if lm in (None, "worldlet"):
        if not (EMBEDDED / "config.json").is_file():
            raise ConfigError(
                f"the embedded language model is missing from this installation ({EMBEDDED}). "
                "Reinstall theworld, or name another model with --lm"
            )
        return Weights(EMBEDDED, "worldlet", _identity_of(EMBEDDED))
    folder = Path(lm).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} holds no language model: it has no config.json")
        return Weights(folder, str(folder.resolve()), _identity_of(folder))
    if folder.suffix == ".gguf" and folder.is_file():
        with folder.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return Weights(folder.parent, str(folder.resolve()), f"sha256:{digest}", folder.name)
    if not is_hub_id(lm):
        raise ConfigError(
            f"--lm {lm} is neither a folder here nor a Hub id. Name a folder with config.json and safetensors, "
            "or a Hub id such as google/gemma-2-2b-it"
        )
    snapshot = fetch(
        lm, _FILES, error=ConfigError, instead="pass a local folder to --lm, or leave --lm out for the embedded model"
    )
    return Weights(snapshot.folder, snapshot.name, snapshot.identity)


def _identity_of(folder: Path) -> str:
    return hash_files(folder, {path for pattern in _FILES for path in folder.glob(pattern)})


def load_language_model(
    weights: Weights, *, device: torch.device, dtype: torch.dtype, attention: AttentionName = "auto"
) -> LanguageModel:
    """Load, freeze and check a language model.

    Args:
        attention: how it computes attention; auto is what we have checked for its architecture.
    Raises:
        ConfigError: an attention it does not compute right, or cannot here; an architecture we have not checked,
            weights that are not safetensors, a tokenizer without <bos> or <eos> or of another model, or a transformers
            release that rescales `inputs_embeds`.
    """
    _check_architecture(weights)
    transformers_logging.disable_progress_bar()  # one bar per file of weights would hide our own lines
    how: dict[str, Any] = {"gguf_file": weights.gguf}
    if not weights.gguf:
        how = {"attn_implementation": _attention(weights, attention), "use_safetensors": True}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            weights.folder, dtype=dtype, trust_remote_code=False, local_files_only=True, **how
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"cannot load the language model in {weights.folder}: {error}") from error
    if weights.gguf and type(model).__name__ not in ARCHITECTURES:
        raise _unchecked(weights, type(model).__name__)
    tokenizer = _load_tokenizer(weights)
    model.requires_grad_(False).eval().to(device)
    check_embedding_scale(model)
    lm = LanguageModel(model, tokenizer, weights)
    _check_tokenizer(lm)
    return lm


def _check_tokenizer(lm: LanguageModel) -> None:
    """Refuse tokens that the model has no embedding for: it is another model's tokenizer."""
    known = int(lm.model.get_input_embeddings().weight.shape[0])
    used = {*lm.answer_ids(_PROBE), *lm.prompt_ids(_PROBE)} - {getattr(lm.settings, "image_token_id", None)}
    if max(used) >= known:
        raise ConfigError(
            f"the tokenizer in {lm.weights.folder} is another model's: it gives token {max(used)}, and the model knows "
            f"{known}. Put the tokenizer files beside the weights they came with"
        )


def load_phrasebook(weights: Weights) -> Phrasebook:
    """A language model's tokenizer and configuration alone: a second instead of minutes.

    Raises:
        ConfigError: as `load_language_model`, but for what only weights show.
    """
    _check_architecture(weights)
    how = {"gguf_file": weights.gguf} if weights.gguf else {}
    try:
        config = AutoConfig.from_pretrained(weights.folder, trust_remote_code=False, local_files_only=True, **how)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"cannot read the language model in {weights.folder}: {error}") from error
    return Phrasebook(_load_tokenizer(weights), weights, config)


def _load_tokenizer(weights: Weights) -> Any:
    how = {"gguf_file": weights.gguf} if weights.gguf else {}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            weights.folder, trust_remote_code=False, local_files_only=True, **how
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"cannot load the tokenizer in {weights.folder}: {error}") from error
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer in {weights.folder} names no <bos> or no <eos>: world tokens stand behind <bos>, "
            "answers end with <eos>. Set both in its tokenizer_config.json"
        )
    return tokenizer


def _attention(weights: Weights, wanted: AttentionName) -> str:
    architecture = _architecture(weights)
    if wanted == "auto":
        return ARCHITECTURES[architecture]
    if wanted == "sdpa" and architecture == "Gemma2ForCausalLM":
        raise ConfigError(
            f"{weights.source} caps its attention scores, which sdpa leaves out: its answers would be others. "
            "Use attention = eager, or flex_attention on a GPU"
        )
    return wanted


def _architecture(weights: Weights) -> str:
    try:
        config = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
        return str((config.get("architectures") or ["none named"])[0])
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"cannot read {weights.folder / 'config.json'}: {error}") from error


def _check_architecture(weights: Weights) -> None:
    if weights.gguf:  # only loading shows what is in it
        if find_spec("gguf") is None:
            raise ConfigError(f"{weights.source} needs the library gguf: pip install 'theworld[gguf]'")
    elif (architecture := _architecture(weights)) not in ARCHITECTURES:
        raise _unchecked(weights, architecture)


def _unchecked(weights: Weights, architecture: str) -> ConfigError:
    *most, last = ARCHITECTURES
    return ConfigError(
        f"{weights.source} is a {architecture}; world tokens are checked for {', '.join(most)} and {last}. "
        "Choose a Gemma-2 or Gemma-3"
    )


@torch.no_grad()
def check_embedding_scale(model: Any) -> None:
    """Refuse a model that changes `inputs_embeds` on their way in.

    transformers 4.x multiplied Gemma-2's by sqrt(hidden), 48 times too much for vectors that already have the
    embeddings' scale; 5.4 moved that factor into the embedding layer (vllm-project/vllm#36787).

    Raises:
        ConfigError: `model(inputs_embeds=embed(ids))` is not `model(input_ids=ids)`.
    """
    embed = model.get_input_embeddings()
    ids = torch.arange(8, device=model.device)[None] % embed.weight.shape[0]
    by_ids, by_vectors = model(input_ids=ids).logits, model(inputs_embeds=embed(ids)).logits
    if not torch.allclose(by_ids, by_vectors, rtol=1e-3, atol=1e-3):
        import transformers

        raise ConfigError(
            f"transformers {transformers.__version__} changes inputs_embeds inside {type(model).__name__} "
            f"(logits differ by {(by_ids - by_vectors).abs().max():.2g}), so world tokens would reach it at the wrong "
            "scale. Install transformers 5.23 or later"
        )


@torch.no_grad()
def embedding_rms(model: Any) -> float:
    """Root mean square over the elements of the embedding vectors, as the first layer receives them."""
    embed = model.get_input_embeddings()
    rows = embed.weight.shape[0]
    ids = torch.linspace(0, rows - 1, min(rows, _SAMPLE), device=embed.weight.device).long()
    return float(embed(ids).float().square().mean().sqrt())


def add_lora(lm: LanguageModel, *, rank: int, alpha: int, dropout: float) -> LanguageModel:
    """The same model with LoRA adapters on all linear layers but the output head. Its own weights stay frozen."""
    commit = None
    if lm.weights.identity.startswith("hub:"):  # else peft would note this machine's cache folder as the base model
        lm.model.name_or_path, _, commit = lm.weights.source.partition("@")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        exclude_modules=rf".*\b({'|'.join(_EYES)})\b.*" if lm.image_tokens else None,
        task_type="CAUSAL_LM",
        revision=commit,
    )
    with _quiet_peft():
        return LanguageModel(get_peft_model(lm.model, config), lm.tokenizer, lm.weights)


def checkpoint_activations(lm: LanguageModel) -> None:
    """Keep each layer's input alone and compute the rest again in the backward pass: the same gradients."""
    base: Any = lm.model.get_base_model() if isinstance(lm.model, PeftModel) else lm.model
    if hasattr(base, "activation_checkpointing_enable"):  # the name from transformers 5.2x on
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def merge_adapters(lm: LanguageModel) -> None:
    """Fold LoRA into the weights it stands beside, where these are float32: a quarter less work for an answer.

    Weights of fewer bits would lose some of what LoRA adds, so they stay as they are.
    """
    if isinstance(lm.model, PeftModel) and lm.model.get_input_embeddings().weight.dtype == torch.float32:
        lm.model.merge_adapter()


def load_adapter(lm: LanguageModel, folder: Path) -> LanguageModel:
    """The same model with the LoRA adapters of a run folder, frozen."""
    with _quiet_peft():
        adapted = PeftModel.from_pretrained(lm.model, str(folder), torch_device=str(lm.model.device))
    return LanguageModel(adapted, lm.tokenizer, lm.weights)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """peft 0.21 asks transformers 5.23 a question by its old name, which warns about version 6."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
