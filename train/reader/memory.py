"""How much memory training and answering need, from configurations and shapes alone: nothing is loaded.

The figures follow what one layer of Gemma in transformers computes, with peft's adapters in float32 on its linear
layers: what autograd keeps of it, and what it takes for a moment. tests/train/reader/test_memory.py compares them with
the allocations of the real modules. Attention counts as a fused kernel, unless it is eager, which makes all scores.
With flex attention rows are as long as they are padded to (lengths.py), and no mask is made whole.
Not in it: what the libraries of a GPU take for themselves, and gaps between allocations; `usable` (device_memory.py)
leaves room for them.

Sizes:  T tokens of all rows   E width of the model   M width of its MLP   W bytes of a number of the frozen model
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...pipeline.messages import format_bytes
from .layouts import TokenLayout
from .lengths import BLOCK, padded_length

_F = 4  # bytes of a float32
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers of Phi-3 that are several in others."""
SCORED_AT_ONCE = 64
"""Labelled tokens whose probabilities an answer computes together, in float32 over the whole vocabulary."""
PAIRS_AT_ONCE = 2**24
"""Pairs of tokens that are looked at together to find the blocks of a mask: 1,900 tokens of four rows, or a part."""
_BY_PAIR = 6  # bytes of what is made to look at a pair: a few booleans, and their places


@dataclass(frozen=True, kw_only=True, slots=True)
class LMShape:
    """The sizes of a language model."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    caps_scores: bool
    caps_logits: bool
    norms_heads: bool
    """Whether queries and keys are normed (Gemma-3)."""
    masks: int
    """Kinds of layers, each with a mask of its own: all tokens, a window."""
    parameters: int
    by_layer: int = 0
    """Numbers of a token beside its embedding, some for each layer (small Gemma-4s)."""
    vision: int = 0
    """Numbers that a vision tower computes at once for an image; 0 has none."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LMShape:
        """From a configuration of transformers, as `config.json` has it with all defaults filled in."""
        text: Mapping[str, Any] = config.get("text_config") or config
        width, layers, mlp = text["hidden_size"], text["num_hidden_layers"], text["intermediate_size"]
        heads = text["num_attention_heads"]
        kv_heads, head_dim = text.get("num_key_value_heads") or heads, text.get("head_dim") or width // heads
        norms_heads = str(text.get("model_type", "")).startswith(("gemma3", "gemma4", "qwen3", "olmo2"))
        attention = width * head_dim * 2 * (heads + kv_heads)
        a_layer = attention + 3 * width * mlp + 4 * width + (2 * head_dim if norms_heads else 0)
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", True)) is not False
        tower, at_once = _vision(config, width)
        by_layer = layers * (text.get("hidden_size_per_layer_input") or 0)
        of_layers = (
            layers * a_layer + _of_gemma_4(text) + by_layer * (3 * width + text.get("vocab_size_per_layer_input", 0))
        )
        return cls(
            layers=layers,
            width=width,
            mlp=mlp,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=text["vocab_size"],
            caps_scores=bool(text.get("attn_logit_softcapping")),
            caps_logits=bool(text.get("final_logit_softcapping")),
            norms_heads=norms_heads,
            masks=2 if text.get("sliding_window") else 1,
            by_layer=by_layer,
            parameters=of_layers + width + (1 if tied else 2) * text["vocab_size"] * width + tower,
            vision=at_once,
        )

    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear layers, by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = (
            (self.width, queries),
            (self.width, keys),
            (self.width, keys),
            (queries, self.width),
            (self.width, self.mlp),
            (self.width, self.mlp),
            (self.mlp, self.width),
        )
        return dict(zip(_LINEARS, sizes, strict=True))


def _of_gemma_4(text: Mapping[str, Any]) -> int:
    """Parameters that a Gemma-4 has more, or less, than if all its layers were as the config's first lines say."""
    if not str(text.get("model_type", "")).startswith("gemma4"):
        return 0
    width, layers, kinds = text["hidden_size"], text["num_hidden_layers"], text.get("layer_types") or ()
    layer_config = text.get("per_layer_config") or {}
    first_shared = layers - (text.get("num_kv_shared_layers") or 0)
    more = 0
    for layer in range(layers):
        settings = {**text, **layer_config.get(f"{layer:02d}", {})}
        heads, keys, size = settings["num_attention_heads"], settings["num_key_value_heads"], settings["head_dim"]
        own_keys = 0 if layer >= first_shared else keys
        values = 0 if text.get("attention_k_eq_v") and kinds[layer : layer + 1] == ["full_attention"] else own_keys
        more += width * size * (2 * heads + own_keys + values)
        more -= width * text["head_dim"] * 2 * (text["num_attention_heads"] + text["num_key_value_heads"])
        if text.get("use_double_wide_mlp") and layer >= first_shared:
            more += 3 * width * text["intermediate_size"]
        if text.get("enable_moe_block"):
            more += text["num_experts"] * (3 * width * text["moe_intermediate_size"] + width)
    return more


def _vision(config: Mapping[str, Any], width: int) -> tuple[int, int]:
    """Parameters of a SigLIP tower with its projector, and the numbers it computes at once for an image."""
    vision: Mapping[str, Any] | None = config.get("vision_config")
    if not vision:
        return 0, 0
    inner, mlp, side = vision["hidden_size"], vision["intermediate_size"], vision["image_size"] // vision["patch_size"]
    a_layer = 4 * inner * (inner + 1) + 2 * inner * mlp + mlp + inner + 4 * inner
    patches = side * side * inner + vision.get("num_channels", 3) * vision["patch_size"] ** 2 * inner + inner
    tower = vision["num_hidden_layers"] * a_layer + patches + 2 * inner
    return tower + inner * (width + 1), side * side * (6 * inner + 2 * mlp)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """LoRA on the linear layers of these names. A name of a single layer counts as in all layers."""

    rank: int = 16
    targets: frozenset[str] = frozenset(_LINEARS)
    dtype_bytes: int = _F
    """Of a number that they compute with; their weights are float32."""

    @classmethod
    def on(cls, modules: Iterable[str] | None, rank: int, *, dtype_bytes: int = _F) -> Adapters:
        """From `target_modules`; None is all."""
        targets = frozenset(_LINEARS)
        if modules is not None:
            names = [name.rpartition(".")[2] for name in modules]
            targets &= frozenset(part for name in names for part in _FUSED.get(name, (name,)))
        return cls(rank=rank, targets=targets, dtype_bytes=dtype_bytes)

    def parameters(self, lm: LMShape) -> int:
        """How many numbers they have."""
        return lm.layers * sum(
            self.rank * (inputs + outputs) for name, (inputs, outputs) in lm.linears().items() if name in self.targets
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderShape:
    """The sizes of a reader: `WorldReader`."""

    world_tokens: int
    cells: int
    """Tokens that are projected, for one image: more than the world tokens only before a resampler."""
    inner: int
    """Width between its two layers."""
    numbers: int
    """Of one cell's token."""
    parameters: int

    @classmethod
    def of(
        cls,
        layout: TokenLayout,
        *,
        latent_shape: tuple[int, int, int],
        frames: int,
        max_world_steps: int,
        width: int,
    ) -> ReaderShape:
        """Of a layout that reads so many latent frames of (C, H, W)."""
        channels, height, cell_columns = latent_shape
        numbers = layout.numbers(*latent_shape)
        rows, columns = layout.places(*latent_shape)
        tokens = layout.count(frames, height, cell_columns, channels=channels)
        inner, cells, queries = max(4 * numbers, width), tokens, 0
        if layout.name == "resampler":
            inner, queries = min(512, -(-max(numbers, width) // 64) * 64), layout.queries
            cells = rows * columns * len(layout.slots(frames))
        times = max_world_steps + 1
        parameters = (
            inner * (numbers + width + rows + columns + (times if layout.name == "channel" else 0)) + inner + width
        )
        parameters += times * channels + 2 * (12 * inner * inner + 11 * inner) * (queries > 0) + queries * inner
        return cls(world_tokens=tokens, cells=cells, inner=inner, numbers=numbers, parameters=parameters)

    def kept(self, width: int) -> int:
        """Bytes that one image keeps for the backward pass."""
        into = self.cells * (self.numbers + 3 * self.inner)
        mixed = 12 * self.cells * self.inner if self.cells > self.world_tokens else 0
        return _F * (into + mixed + 2 * self.world_tokens * width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one pass, as long as the longest."""

    count: int
    text: int
    """Text tokens of a row, <bos> included."""
    labels: int
    """Labelled tokens of all rows."""
    is_packed: bool = False
    """Whether a row holds several questions: then their masks are made whole, in the model's dtype."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes at the moment that takes most."""

    weights: int
    """Of the frozen model."""
    trained: int
    """What is trained, with gradients and both moments of the optimizer; in an answer the adapters alone."""
    computed: int
    """Activations, masks and logits."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.computed

    def describe(self) -> str:
        """In a few words."""
        parts = {"frozen weights": self.weights, "trained weights and optimizer": self.trained}
        sizes = ", ".join(f"{format_bytes(size)} {name}" for name, size in parts.items())
        return f"{format_bytes(self.total)} ({sizes}, {format_bytes(self.computed)} activations and logits)"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryShape:
    """What decides how much memory is needed, besides the rows."""

    lm: LMShape
    reader: ReaderShape | None
    """None where no world is shown."""
    adapters: Adapters
    dtype_bytes: int
    """Of the frozen model: 2 or 4."""
    is_eager: bool = True
    """Attention that makes all scores."""
    masks_whole: bool = True
    """Whether packed rows get masks of every token by every token; flex attention makes none."""
    is_flex: bool = False

    def training(self, rows: Rows, *, checkpointing: bool, passes: int = 1) -> Estimate:
        """The most that an update takes.

        Args:
            checkpointing: whether each layer keeps its input alone.
            passes: forward and backward passes of an update, whose gradients are summed.
        """
        tokens, lm = self._tokens(rows), self.lm
        attention, scores = self._kept_by_attention(rows), lm.heads * rows.count * self._length(rows) ** 2
        mlp = self._kept_by_mlp(rows)
        layer_input = self.dtype_bytes * lm.width * tokens
        other_layers = (lm.layers - 1) * (attention + mlp)
        if checkpointing:
            other_layers = lm.layers * layer_input
        # An MLP takes most or, where all scores are made, attention going backward: what the MLP kept is gone by then.
        is_cast = self.dtype_bytes < _F
        around_mlp = (4 if is_cast else 8) * lm.mlp * tokens + (8 if is_cast else 4) * lm.width * tokens
        around_scores = (6 if is_cast else 8) * scores * self.is_eager
        layer = max(attention + mlp + around_mlp, attention + around_scores + layer_input)
        everything_kept = other_layers + (0 if checkpointing else attention + mlp)
        head = everything_kept + self._head(rows, is_training=True) + 2 * layer_input
        reader = self.reader.kept(lm.width) * rows.count if self.reader else 0
        steady = self._masks(rows) + reader + 2 * layer_input + self._by_layer(rows)
        trained = self.adapters.parameters(lm) + (self.reader.parameters if self.reader else 0)
        stage = max(other_layers + layer, head, self._pixels(rows))
        gradients = _F * trained * (passes > 1)
        at_the_end = _F * trained  # gradients of all layers, when the activations are gone
        return Estimate(
            weights=self.dtype_bytes * lm.parameters,
            trained=3 * _F * trained + gradients,
            computed=max(steady + stage, at_the_end),
        )

    def answering(self, rows: Rows, *, new_tokens: int = 0) -> Estimate:
        """The most that the answers to some rows take.

        Args:
            new_tokens: of an answer that is written token by token, whose keys and values are kept.
        """
        if new_tokens and self.is_flex:  # a text is generated without it
            plain = replace(self, is_flex=False, is_eager=self.lm.caps_scores, masks_whole=True)
            return plain.answering(rows, new_tokens=new_tokens)
        tokens, lm, size = self._tokens(rows), self.lm, self.dtype_bytes
        queries, keys = lm.heads * lm.head_dim, lm.kv_heads * lm.head_dim
        scores = lm.heads * rows.count * self._length(rows) ** 2
        is_cast = size < _F
        attention = size * tokens * (2 * lm.width + 4 * queries + 2 * keys)
        attention += (10 if is_cast else 8) * scores * self.is_eager
        by_mlp = 4 * size if self.adapters.dtype_bytes == size else 12  # else a float32 copy of what one adapter gets
        mlp = by_mlp * lm.mlp * tokens + (7 * size // 2) * lm.width * tokens
        cache = size * 2 * keys * lm.layers * (tokens + new_tokens * rows.count) if new_tokens else 0
        head = self._head(rows, is_training=False)
        trained = self.adapters.parameters(lm) + (self.reader.parameters if self.reader else 0)
        embedded = size * lm.width * tokens + self._by_layer(rows)
        stage = max(attention, mlp, head, self._pixels(rows))
        return Estimate(
            weights=size * lm.parameters,
            trained=_F * trained,
            computed=self._masks(rows) + embedded + cache + stage,
        )

    def _length(self, rows: Rows) -> int:
        length = rows.text + (self.reader.world_tokens if self.reader else 0)
        return padded_length(length) if self.is_flex else length

    def _tokens(self, rows: Rows) -> int:
        return rows.count * self._length(rows)

    def _by_layer(self, rows: Rows) -> int:
        """What each layer gets beside the hidden state: looked up, projected, and their sum."""
        return 3 * self.dtype_bytes * self.lm.by_layer * self._tokens(rows)

    def _adapted(self, *names: str) -> int:
        return sum(name in self.adapters.targets for name in names)

    def _kept_inputs(self, names: tuple[str, ...], width: int) -> int:
        """Bytes by token that adapters on these layers keep: what they get, and their ranks.

        Where they compute in another dtype than the model, each keeps a copy of its own of what it gets.
        """
        adapted, size = self._adapted(*names), self.adapters.dtype_bytes
        copies = adapted if self.dtype_bytes < size else min(adapted, 1)
        return size * (copies * width + adapted * self.adapters.rank)

    def _kept_by_attention(self, rows: Rows) -> int:
        lm, size = self.lm, self.dtype_bytes
        queries, keys = lm.heads * lm.head_dim, lm.kv_heads * lm.head_dim
        repeated = queries if lm.heads > lm.kv_heads and not self.is_flex else keys
        numbers = 2 * _F * lm.width + size * (queries + 2 * repeated)  # the norms around it; queries, keys, values
        numbers += _F * (queries + keys) * lm.norms_heads
        numbers += self._kept_inputs(("q_proj", "k_proj", "v_proj"), lm.width) + self._kept_inputs(("o_proj",), queries)
        kept = numbers * self._tokens(rows)
        if not self.is_eager:
            return kept + (size * queries + _F * lm.heads) * self._tokens(rows)
        by_score = _F + size * lm.caps_scores + (size if size < _F else 0)  # softmax, its rounded copy, tanh
        return kept + by_score * lm.heads * rows.count * self._length(rows) ** 2

    def _kept_by_mlp(self, rows: Rows) -> int:
        lm = self.lm
        numbers = 2 * _F * lm.width + 3 * self.dtype_bytes * lm.mlp  # the norms around it; gate, its gelu, up
        numbers += self._kept_inputs(("gate_proj", "up_proj"), lm.width) + self._kept_inputs(("down_proj",), lm.mlp)
        return numbers * self._tokens(rows)

    def _head(self, rows: Rows, *, is_training: bool) -> int:
        """The last norm, logits of the labelled tokens, and their probabilities."""
        lm, size = self.lm, self.dtype_bytes
        words = rows.labels * lm.vocabulary
        if is_training:
            by_word = 3 * _F + (size if lm.caps_logits else 0)
            return by_word * words + (2 * _F + size) * lm.width * self._tokens(rows)
        some = min(rows.labels, SCORED_AT_ONCE) * lm.vocabulary
        made = (2 if lm.caps_logits else 1) * size * words
        return max(made, size * words + 2 * _F * some) + (2 * _F + size) * lm.width * self._tokens(rows)

    def _masks(self, rows: Rows) -> int:
        """Of every token by every token, for each kind of layer."""
        if not self.masks_whole:
            length = self._length(rows)
            pairs = min(rows.count * length**2, max(PAIRS_AT_ONCE, rows.count * BLOCK * length))
            return _BY_PAIR * pairs * self.is_flex  # for a moment, to find the blocks
        is_float = self.is_eager or rows.is_packed
        return (self.dtype_bytes if is_float else 1) * self.lm.masks * rows.count * self._length(rows) ** 2

    def _pixels(self, rows: Rows) -> int:
        return self.dtype_bytes * self.lm.vision * rows.count
