"""How Cosmos-Predict2.5 reads a prompt: Qwen2.5-VL's hidden states of all layers, projected to the network's width.

The projection is part of the network. It is done here, once a prompt: 512 rows of 100,352 numbers become rows of 1,024,
1 MB in place of 103.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.hub.chat_texts import template_of, write_chats
from ....pipeline.files.hub.pretrained import load_pretrained, refusals_of_tokenizer, require_plain
from ....pipeline.files.limits import MAX_WEIGHT_BYTES
from ..text_embeddings import ROWS, PromptReader, Text
from ..text_rows import MAX_PROMPT_TOKENS, require_fitting_tokens

SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
"""Source: `Cosmos2_5_PredictBasePipeline._get_prompt_embeds`."""
PROJECTION = "crossattn_proj.0."


def load_reader(folder: Path, *, compute_dtype: str, device: str) -> PromptReader:
    """What reads prompts with the text encoder of a folder in the stock layout, which is held as long as this is.

    Args:
        compute_dtype: of the network, whose projection this is.
    Raises:
        WorldModelError: the text encoder or the projection cannot be loaded.
    """
    import transformers

    def load(kind: Any, part: str, what: str, **options: Any) -> Any:
        return load_pretrained(kind, folder, part, error=WorldModelError, what=what, **options)

    weight, bias = (part.to(device, getattr(torch, compute_dtype)) for part in load_projection(folder))
    tokenizer = load(transformers.AutoTokenizer, "tokenizer", "text encoder's tokenizer")
    kind = transformers.Qwen2_5_VLForConditionalGeneration
    model = load(kind, "text_encoder", "text encoder", use_safetensors=True).eval().to(device)
    config = model.config.get_text_config()
    if (width := config.hidden_size * config.num_hidden_layers) != weight.shape[1]:
        raise WorldModelError(
            f"the text encoder in {folder} gives {width} numbers a token, and its transformer takes {weight.shape[1]}: "
            "they are of two models"
        )

    @torch.inference_mode()
    def read(prompt: str, *, negative: bool = False) -> Text:
        del negative  # both are read alike
        rows = embed(model, tokenizer, prompt).to(weight.dtype)
        return {ROWS: torch.nn.functional.gelu(torch.nn.functional.linear(rows, weight, bias)).cpu()}

    return read


def embed(model: Any, tokenizer: Any, prompt: str) -> Tensor:
    """(1, 512, layers * width): each layer's hidden states, standardised over their width, layer after layer.

    Positions of padding are no zeros, and the encoder is not told which they are.

    Raises:
        ConfigError: the prompt is too long.
        WorldModelError: the tokenizer has no chat template that can be used.

    Source: `Cosmos2_5_PredictBasePipeline._get_prompt_embeds`.
    """
    where = Path(tokenizer.name_or_path)
    text = chat_text(tokenizer, prompt)
    with refusals_of_tokenizer(ConfigError, where):
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    require_fitting_tokens(ids, model, tokenizer)
    with refusals_of_tokenizer(ConfigError, where):
        padded = tokenizer.pad({"input_ids": [ids]}, padding="max_length", max_length=MAX_PROMPT_TOKENS)["input_ids"]
    layers = model(torch.tensor(padded, device=model.device), output_hidden_states=True).hidden_states[1:]
    return torch.cat(
        [(layer - layer.mean(dim=-1, keepdim=True)) / (layer.std(dim=-1, keepdim=True) + 1e-8) for layer in layers],
        dim=-1,
    )


def chat_text(tokenizer: Any, prompt: str) -> str:
    """The prompt as a user's turn, by the tokenizer's own chat template.

    Raises:
        WorldModelError: it has none, or one that does not end.
    """
    where = tokenizer.name_or_path
    if (template := template_of(tokenizer)) is None:
        raise WorldModelError(f"the tokenizer in {where} has no chat template, which Cosmos-Predict2.5 reads with")
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", SYSTEM), ("user", prompt))
    ]
    names = {**tokenizer.special_tokens_map, "add_vision_id": False}
    written = write_chats(template, names, [(turns, False)])
    if isinstance(written, str):
        raise WorldModelError(f"the chat template of the tokenizer in {where} {written}. Use the files of the model")
    return written[0]


def load_projection(folder: Path) -> tuple[Tensor, Tensor]:
    """Weight and bias of the network's projection of text, without the rest of the network.

    Args:
        folder: a world model in the stock layout.
    Raises:
        WorldModelError: they are not in its files.
    """
    tensors: dict[str, Tensor] = {}
    try:
        for path in sorted((folder / "transformer").glob("*.safetensors")):
            with safe_open(require_plain(folder, path, MAX_WEIGHT_BYTES), framework="pt") as file:
                names = {f"{PROJECTION}weight", f"{PROJECTION}bias"} & set(file.keys())
                tensors |= {name: file.get_tensor(name) for name in names}
        return tensors[f"{PROJECTION}weight"], tensors[f"{PROJECTION}bias"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise WorldModelError(f"the projection of text in {folder}/transformer cannot be read: {error!r}") from error
