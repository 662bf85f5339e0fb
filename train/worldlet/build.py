"""Train the small Gemma of the worldlet on texts without physics, and gate it before it is frozen.

Lives here: its configuration, the training loop, the gate, the folder it is saved to. Elsewhere: the
words (words.py) and the texts (grammar.py). The shipped weights come from `build_lm(out, minutes=8)`.
"""

import json
import logging
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from .grammar import Text, sample_pair, sample_text
from .words import BOS, EOS, PAD, new_tokenizer

log = logging.getLogger(__name__)

GATE = 0.95
"""Share of right answers that every answer family must reach, each for itself."""

_IGNORED = -100
_BATCH = 32
_MUON_LR, _ADAMW_LR = 1e-2, 3e-3


def new_lm(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int = 128, layers: int = 4) -> Gemma2ForCausalLM:
    """A fresh model: stock Gemma 2 without soft-capping, embeddings tied."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=hidden_size // 4,
            query_pre_attn_scalar=hidden_size // 4,
            max_position_embeddings=8192,
            sliding_window=4096,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            tie_word_embeddings=True,
            attn_implementation="eager",  # pyright: ignore[reportCallIssue] - taken by the base config
            bos_token_id=tokenizer.convert_tokens_to_ids(BOS),
            eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
            pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        )
    )


def collate(tokenizer: PreTrainedTokenizerFast, texts: list[Text]) -> dict[str, Tensor]:
    """Token ids, mask and labels, padded on the right; labels only on answers and the ends behind them."""
    rows, labels = [], []
    for text in texts:
        row: list[int] = []
        label: list[int] = []
        for piece, counts in text.pieces():
            ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
            row += ids
            label += ids if counts else [_IGNORED] * len(ids)
        rows.append(row)
        labels.append(label)
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([label + [_IGNORED] * (width - len(label)) for label in labels]),
    }


@torch.no_grad()
def score_lm(
    model: Gemma2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    texts: int = 400,
    seed: int = 1,
    second_thing: float = 0.0,
) -> dict[str, float]:
    """Share of right answers per family on fresh texts with one question each, by the likeliest word.

    Texts are about one ball and its ramps, as the scenes are; with `second_thing=1` each also has a second
    thing and a second number, to be told apart by name, which is harder than anything a scene asks.
    """
    rng = Random(f"gate {seed}")
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for start in range(0, texts, 50):
        batch = [sample_text(rng, questions=1, second_thing=second_thing) for _ in range(min(50, texts - start))]
        inputs = collate(tokenizer, batch)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        first = (labels != _IGNORED).int().argmax(dim=1)  # where the answer's word stands
        rows = torch.arange(len(batch))
        guesses, truths = logits[rows, first - 1].argmax(dim=-1), labels[rows, first]
        for text, guess, truth in zip(batch, guesses.tolist(), truths.tolist(), strict=True):
            family = text.questions[0][2]
            total[family] += 1
            right[family] += guess == truth
    return {family: right[family] / total[family] for family in sorted(total)}


def build_lm(out: Path, *, minutes: float, seed: int = 0, scratch: Path | None = None) -> dict[str, Any]:
    """Train for `minutes` of CPU time and write model, tokenizer and card to `out`; returns the card.

    Args:
        out: folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.
        scratch: where to keep the last state once a minute; a second call goes on from it.
    """
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    model = new_lm(tokenizer).train()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    moving = [torch.zeros_like(p) for p in matrices]
    adamw = torch.optim.AdamW(rest, lr=_ADAMW_LR, betas=(0.9, 0.98), weight_decay=0.0)
    step, before_s = 0, 0.0
    if scratch is not None and (scratch / "progress.json").exists():
        progress = json.loads((scratch / "progress.json").read_text())
        step, before_s = progress["step"], progress["elapsed_s"]
        model.load_state_dict(load_file(scratch / "last.safetensors"), strict=False)
        model.tie_weights()
    rng = Random(f"texts {seed} {step}")
    start, budget_s, saved_s = time.process_time(), minutes * 60, before_s
    while (elapsed_s := before_s + time.process_time() - start) < budget_s:
        done = elapsed_s / budget_s
        scale = min(1.0, done / 0.02 + 0.05) * min(1.0, max(0.01, (1 - done) / 0.6))
        for group in adamw.param_groups:
            group["lr"] = _ADAMW_LR * scale
        loss = model(**collate(tokenizer, _lesson(rng, done))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        _muon_step(matrices, moving, _MUON_LR * scale)
        adamw.step()
        model.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            log.info("lm %.0f s step %d loss %.4f", elapsed_s, step, loss.item())
        if scratch is not None and elapsed_s - saved_s > 60:
            saved_s = elapsed_s
            _save_state(scratch, model, step, elapsed_s)
    model.eval()
    cpu_seconds = round(before_s + time.process_time() - start)
    card = new_card(model, tokenizer, seed=seed, train_steps=step, cpu_seconds=cpu_seconds)
    save_lm(out, model, tokenizer)
    write_card(out, card)
    if not card["gate"]["passed"]:
        log.warning("the language model missed its gate: %s; train longer", card["gate"])
    return card


def new_card(
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, seed: int, train_steps: int, cpu_seconds: int
) -> dict[str, Any]:
    """What the model is and how it scores: the gate, and the harder texts that are not part of it."""
    scores = score_lm(model, tokenizer, texts=1000)
    return {
        "name": "worldlet small language model",
        "class": "Gemma2ForCausalLM",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": "random grounded questions and answers without physics (train/worldlet/grammar.py)",
        "seed": seed,
        "train_steps": train_steps,
        "cpu_seconds": cpu_seconds,
        "gate": {"required": GATE, "passed": min(scores.values()) >= GATE, "texts": 1000, **scores},
        "two_things": score_lm(model, tokenizer, texts=400, second_thing=1.0),
    }


def _lesson(rng: Random, done: float) -> list[Text]:
    """A batch for a training that is `done` (0 to 1) over: pairs of places first, whole texts later."""
    if rng.random() < (0.85 if done < 0.4 else 0.3):
        return [sample_pair(rng, plain=rng.random() < 0.7 - done) for _ in range(_BATCH)]
    return [sample_text(rng) for _ in range(_BATCH)]


@torch.no_grad()
def _muon_step(matrices: list[torch.nn.Parameter], moving: list[Tensor], lr: float) -> None:
    """Orthogonalised momentum, in fp32: torch.optim.Muon works in bf16, 10 times slower on a CPU without it."""
    for parameter, momentum in zip(matrices, moving, strict=True):
        assert parameter.grad is not None
        momentum.lerp_(parameter.grad, 0.05)
        update = parameter.grad.lerp(momentum, 0.95)
        wide = update.shape[0] <= update.shape[1]
        x = update if wide else update.T
        x = x / (x.norm() + 1e-7)
        for _ in range(5):  # Newton-Schulz with Keller Jordan's coefficients
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        parameter.add_(x if wide else x.T, alpha=-0.2 * lr * max(x.shape) ** 0.5)


def save_lm(out: Path, model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the stock folder; weights as fp16, which the config's dtype turns back to fp32 on loading."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = out / "model.safetensors"
    halves = {name: value.half() for name, value in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)


def write_card(out: Path, card: dict[str, Any]) -> None:
    """Write card.json and the README that says the same in words."""
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    families = list(card["two_things"])
    one, two = (", ".join(f"{f} {card[key][f]:.1%}" for f in families) for key in ("gate", "two_things"))
    (out / "README.md").write_text(
        "# The worldlet's small language model\n\n"
        "A `Gemma2ForCausalLM` with a word-level tokenizer, trained from nothing on random statements and\n"
        "questions about them: it copies stated answers and knows no physics. Made by\n"
        f"`theworld.train.worldlet.build`. Right on unseen texts about one ball and its ramps: {one}.\n"
        f"With a second thing to tell apart by name: {two}.\n"
    )


def _save_state(scratch: Path, model: Gemma2ForCausalLM, step: int, elapsed_s: float) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, scratch / "last.safetensors")
    (scratch / "progress.json").write_text(json.dumps({"step": step, "elapsed_s": elapsed_s}))
