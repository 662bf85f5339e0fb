"""The one door to transformers and peft for language models: find, load, check, adapt, and speak their format.

Lives here: which weights (a folder, a Hub id at a commit, the embedded worldlet LM), LoRA, prompts as token ids.
Elsewhere: what the model sees before the prompt (tokens.py, model.py).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ..pipeline.errors import ConfigError
from ..pipeline.weights import fetch, hash_files, is_hub_id
from .config import AttentionName

ARCHITECTURES = {"Gemma2ForCausalLM": "eager", "Gemma3ForCausalLM": "sdpa"}
"""The models we have checked, and the attention each computes right. Gemma-2's soft-capping rules out sdpa."""

EMBEDDED = Path(__file__).parent / "worldlet" / "weights"
"""The miniature Gemma-2 that ships with the package."""

_PLAIN_PROMPT = "question: {question} answer:"
"""For tokenizers without a chat template; the format the worldlet LM was trained on."""

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]
_SAMPLE = 4096  # embedding rows measured for their scale


@dataclass(frozen=True, slots=True)
class Weights:
    """A folder with a language model's files, and which weights they are."""

    folder: Path
    source: str
    """What finds them again: a folder's absolute path, `ORG/NAME@<commit>`, or `worldlet`."""
    identity: str
    """`hub:ORG/NAME@<40 hex commit>`, or `sha256:<64 hex>` of the files that decide what the model says."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A frozen causal language model (perhaps with LoRA around it) and how to speak to it."""

    model: Any
    """A `PreTrainedModel`, or the `PeftModel` around it: transformers leaves most of their attributes untyped."""
    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    weights: Weights

    @property
    def hidden_size(self) -> int:
        """Width of its embedding vectors."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def context(self) -> int:
        """Tokens it can attend to."""
        return int(self.model.config.max_position_embeddings)

    @property
    def pad_id(self) -> int:
        """The padding token; masked wherever it stands."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0)

    @property
    def end_id(self) -> int:
        """The token that ends an answer: <end_of_turn> in a chat, <eos> otherwise."""
        return self.answer_ids("yes")[-1]

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids from <bos> to where the answer starts."""
        if self.tokenizer.chat_template is not None:
            ids = self._ids(self._chat(question, None))
        else:
            ids = self._ids(_PLAIN_PROMPT.format(question=question))
        bos = self.tokenizer.bos_token_id
        return ids if ids[:1] == [bos] else [bos, *ids]

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

    def _chat(self, question: str, answer: str | None) -> str:
        turns = [{"role": "user", "content": question}]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))


def find_weights(lm: str | None) -> Weights:
    """The files of a language model, by folder, by Hub id (`ORG/NAME` or `ORG/NAME@revision`), or None: embedded.

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
            weights that are not safetensors, a tokenizer without <bos> or <eos>, or a transformers release that
            rescales `inputs_embeds`.
    """
    _check_architecture(weights)
    transformers_logging.disable_progress_bar()  # one bar per file of weights would hide our own lines
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            dtype=dtype,
            attn_implementation=_attention(weights, attention),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(weights.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"cannot load the language model in {weights.folder}: {error}") from error
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer in {weights.folder} names no <bos> or no <eos>: world tokens stand behind <bos>, "
            "answers end with <eos>. Set both in its tokenizer_config.json"
        )
    model.requires_grad_(False).eval().to(device)
    check_embedding_scale(model)
    return LanguageModel(model, tokenizer, weights)


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
    if (architecture := _architecture(weights)) not in ARCHITECTURES:
        raise ConfigError(
            f"{weights.source} is a {architecture}; world tokens are checked for {' and '.join(ARCHITECTURES)}. "
            "Choose a text-only Gemma-2 or Gemma-3"
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
