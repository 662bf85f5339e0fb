"""How Cosmos 3 reads a prompt: a chat, and the understanding tower, run once. Its keys and values stay; it does not.

There is no text encoder and no "no text": the empty prompt is told size and length of the clip like any other, so it
costs one pass over 40 to 100 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import Cosmos3OmniTransformer
from jaxtyping import Float, Int
from torch import Tensor, nn

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.hub.chat_texts import template_of, write_chats
from ....pipeline.files.hub.pretrained import load_pretrained, refusals_of_tokenizer
from ..text_embeddings import PromptReader, Text
from .cosmos3_clip import MAX_PROMPT_TOKENS, Clip
from .cosmos3_forward import PromptKeys, Rope, attention, rotate

SYSTEM = "You are a helpful assistant who will generate videos from a give prompt."
"""Word for word, the slip included: the model was trained with it."""
DURATION = "The video is {duration:.1f} seconds long and is of {fps:.0f} FPS."
SIZE = "This video is of {height}x{width} resolution."
NOT_DURATION = "The video is not {duration:.1f} seconds long and is not of {fps:.0f} FPS."
NOT_SIZE = "This video is not of {height}x{width} resolution."
"""Source of all five: `Cosmos3OmniPipeline`. The prompt that guidance steers away from gets the opposites."""
KEYS, VALUES = "keys", "values"
"""The tensors of a prompt in a store, each (1, layers, L, K, E)."""


def clip_text(prompt: str, clip: Clip, *, negative: bool) -> str:
    """The prompt and two sentences about the clip. Source: `Cosmos3OmniPipeline.tokenize_prompt`."""
    for sentence in (NOT_DURATION, NOT_SIZE) if negative else (DURATION, SIZE):
        metadata = sentence.format(duration=clip.frames / clip.fps, fps=clip.fps, height=clip.height, width=clip.width)
        begun = prompt.rstrip(".")
        prompt = f"{begun}. {metadata}" if begun else metadata
    return prompt


def load_reader(
    folder: Path, clip: Clip, *, device: str, compute_dtype: str, use_system_prompt: bool = True
) -> PromptReader:
    """What reads prompts for clips of one form, with the understanding tower of a folder, held as long as this is.

    Args:
        folder: a world model in the stock layout, with `transformer/` and `text_tokenizer/`.
        compute_dtype: of the transformer: the same that the clips are made in.
        use_system_prompt: the folder's `default_use_system_prompt`.
    Raises:
        WorldModelError: a part cannot be loaded.
    """
    import transformers

    tokenizer = load_pretrained(
        transformers.AutoTokenizer, folder, "text_tokenizer", error=WorldModelError, what="world model's text_tokenizer"
    )
    tower = UnderstandingTower(load_towers(folder, compute_dtype)).to(torch.device(device))

    def read(prompt: str, *, negative: bool = False) -> Text:
        ids = token_ids(tokenizer, clip_text(prompt, clip, negative=negative), use_system_prompt=use_system_prompt)
        tower.check(ids, tokenizer.name_or_path)
        keys, values = tower(torch.tensor(ids, device=device))
        return {KEYS: keys.unsqueeze(0).cpu(), VALUES: values.unsqueeze(0).cpu()}

    return read


def load_towers(folder: Path, compute_dtype: str) -> Cosmos3OmniTransformer:
    """Both towers on the CPU, for one of them to be kept.

    Where the files have the dtype, the weights are mapped from them: what is let go without a look is never read.
    """
    return load_pretrained(
        Cosmos3OmniTransformer,
        folder,
        "transformer",
        error=WorldModelError,
        what="world model's transformer",
        torch_dtype=getattr(torch, compute_dtype),
        use_safetensors=True,
    )


def token_ids(tokenizer: Any, text: str, *, use_system_prompt: bool) -> list[int]:
    """The tokens of a prompt as a user's turn, and those that begin a video.

    Args:
        tokenizer: a `PreTrainedTokenizerBase` with a chat template.
    Raises:
        WorldModelError: it has no chat template, or one that does not end, or lacks the tokens that begin a video.
        ConfigError: it cannot read the text.

    Source: `Cosmos3OmniPipeline.tokenize_prompt`.
    """
    where = tokenizer.name_or_path
    messages = [{"role": "system", "content": SYSTEM}] if use_system_prompt else []
    template = template_of(tokenizer)
    if template is None:
        raise WorldModelError(f"the tokenizer in {where} has no chat template, which Cosmos 3 reads prompts with")
    names = {**tokenizer.special_tokens_map, "add_vision_id": False}
    written = write_chats(template, names, [([*messages, {"role": "user", "content": text}], True)])
    if isinstance(written, str):
        raise WorldModelError(
            f"the chat template of the tokenizer in {where} {written}. Use the files that NVIDIA gives"
        )
    start = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    if start is None or start == tokenizer.unk_token_id or tokenizer.eos_token_id is None:
        raise WorldModelError(f"the tokenizer in {where} has no token <|vision_start|>, or none that ends a turn")
    with refusals_of_tokenizer(ConfigError, Path(where)):
        ids: list[int] = tokenizer(written[0], add_special_tokens=False).input_ids
    return [*ids, tokenizer.eos_token_id, start]


def keys_of(text: Text) -> PromptKeys:
    """A prompt's keys and values, from their names as of a store.

    Raises:
        WorldModelError: it is a prompt in another form.
    """
    keys, values = text.get(KEYS), text.get(VALUES)
    if keys is None or values is None or keys.ndim != 5 or keys.shape != values.shape or len(keys) != 1:
        shapes = {name: tuple(tensor.shape) for name, tensor in text.items()}
        raise WorldModelError(
            f"the embedding of a prompt holds {shapes}, and Cosmos 3 takes keys and values of each layer. Remove the "
            "store's embeddings of prompts and run precompute again: they are made anew"
        )
    return PromptKeys(keys[0], values[0])


class UnderstandingTower(nn.Module):
    """The half of a loaded `Cosmos3OmniTransformer` that reads text; it keeps its modules and lets go of the others."""

    def __init__(self, stock: Cosmos3OmniTransformer) -> None:
        super().__init__()
        self.embed_tokens, self.rotary = stock.embed_tokens, stock.rotary_emb
        self.layers = nn.ModuleList(UnderstandingLayer(layer) for layer in stock.layers)
        self.dtype: torch.dtype = stock.dtype

    def check(self, ids: list[int], tokenizer: str) -> None:
        """Refuse a prompt that the tower cannot read.

        Raises:
            ConfigError: the tokenizer is another model's, or the prompt too long.
        """
        if max(ids) >= (rows := self.embed_tokens.num_embeddings):
            raise ConfigError(
                f"the tokenizer in {tokenizer} gives token {max(ids)}, and its transformer has {rows} embeddings: it "
                "is another model's"
            )
        if len(ids) > MAX_PROMPT_TOKENS:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, with what Cosmos 3 is told of the clip; {MAX_PROMPT_TOKENS} is the "
                "most. Shorten it"
            )

    @torch.inference_mode()
    def forward(self, ids: Int[Tensor, " L"]) -> PromptKeys:
        """Keys, as generation takes them, and values of each layer. Of the last layer nothing else is computed."""
        hidden = self.embed_tokens(ids).unsqueeze(0)
        positions = torch.arange(len(ids), dtype=torch.float32, device=ids.device).expand(3, 1, -1)
        rope: Rope = self.rotary(position_ids=positions, device=ids.device, dtype=hidden.dtype)
        keys_values: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            hidden, keys, values = layer(hidden, rope, is_last=layer is self.layers[-1])
            keys_values.append((keys[0], values[0]))
        return PromptKeys(*(torch.stack(part) for part in zip(*keys_values, strict=True)))


class UnderstandingLayer(nn.Module):
    """The understanding half of a `Cosmos3VLTextMoTDecoderLayer`."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        attention_of = stock.self_attn
        self.norm, self.norm_mlp, self.mlp = stock.input_layernorm, stock.post_attention_layernorm, stock.mlp
        self.to_q, self.to_k, self.to_v = attention_of.to_q, attention_of.to_k, attention_of.to_v
        self.norm_q, self.norm_k, self.to_out = attention_of.norm_q, attention_of.norm_k, attention_of.to_out
        self.norm_k_for_generation = attention_of.k_norm_und_for_gen
        self._head_width = int(attention_of.head_dim)

    def forward(
        self, hidden: Float[Tensor, "1 L D"], rope: Rope, *, is_last: bool
    ) -> tuple[Float[Tensor, "1 L D"], Float[Tensor, "1 L K E"], Float[Tensor, "1 L K E"]]:
        """The next layer's input, and the keys and values that generation looks at. Source: `Cosmos3AttnProcessor`."""
        normed = self.norm(hidden)
        queries, keys, values = (
            project(normed).unflatten(2, (-1, self._head_width)) for project in (self.to_q, self.to_k, self.to_v)
        )
        keys = self.norm_k(keys)
        given = keys if self.norm_k_for_generation is None else self.norm_k_for_generation(keys)
        given = rotate(given, rope)
        if is_last:
            return hidden, given, values
        mixed = attention(rotate(self.norm_q(queries), rope), rotate(keys, rope), values, causal=True)
        hidden = hidden + self.to_out(mixed.flatten(2))
        return hidden + self.mlp(self.norm_mlp(hidden)), given, values
