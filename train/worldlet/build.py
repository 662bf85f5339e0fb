"""Train the small Gemma of the worldlet on texts without physics, and test it before it is frozen.

Nine minutes of CPU time were enough to pass the test.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from ...pipeline.files.atomic import replace
from ...pipeline.files.rights import follow_umask
from ...pipeline.progress import Progress
from .grammar import FULL, Text, sample_text, sample_things
from .words import BOS, EOS, PAD, new_tokenizer

GATE = 0.95
"""Share of right answers that every answer family and every kind of question must reach, each for itself."""
GATE_TEXTS = 3000
"""Fresh texts the gate is measured on."""

_IGNORED = -100
_MASTERED = 0.08  # running loss at which the next level starts; half of the counted tokens are sure ends
_NEW = 0.7  # share of texts at the present level; the others are easier
_NAMES = 0.3  # share of texts where the name of a thing decides
_MUON_LR, _ADAMW_LR = 1e-2, 3e-3
_SAVE_EVERY_S = 60.0


def new_lm(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int = 128, layers: int = 4) -> Gemma2ForCausalLM:
    """A fresh model: stock Gemma 2 without soft-capping, embeddings tied."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=hidden_size // 4,
            query_pre_attn_scalar=hidden_size // 4,
            max_position_embeddings=8192,
            sliding_window=8,  # every other layer reads inside a statement: names were not told apart without
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
    pieces = [list(text.pieces()) for text in texts]
    spelled = iter(tokenizer([piece for text in pieces for piece, _ in text], add_special_tokens=False)["input_ids"])
    rows, labels = [], []
    for text in pieces:
        row: list[int] = []
        label: list[int] = []
        for _, counts in text:
            ids = next(spelled)
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
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, texts: int = GATE_TEXTS, seed: int = 1
) -> dict[str, float]:
    """Share of right answers, by the likeliest word, on fresh texts with one question each.

    Returns:
        A figure for each answer family (`places`, ...) and for each fact (`land`, `color of top block`, ...).
        Every text also states all that the answer could be mistaken for.
    """
    rng = Random(f"gate {seed}")
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for start in range(0, texts, 50):
        batch = [sample_text(rng, questions=1) for _ in range(min(50, texts - start))]
        inputs = collate(tokenizer, batch)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        answer_positions = (labels != _IGNORED).int().argmax(dim=1)  # where the answer's word stands
        rows = torch.arange(len(batch))
        guesses, truths = logits[rows, answer_positions - 1].argmax(dim=-1), labels[rows, answer_positions]
        for text, guess, truth in zip(batch, guesses.tolist(), truths.tolist(), strict=True):
            question = text.questions[0]
            for name in (question.family, " of ".join(filter(None, question.fact))):
                total[name] += 1
                right[name] += guess == truth
    return {name: right[name] / total[name] for name in sorted(total)}


def build_lm(
    out: Path, *, minutes: float, seed: int = 0, scratch: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Train for `minutes` of CPU time and write model, tokenizer and card to `out`; returns the card.

    Args:
        out: folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.
        scratch: where to keep the last state once a minute; a second call with the same seed goes on from it.
        progress: where a person watches; None is `Progress.to_logger()`.
    """
    progress = progress or Progress.to_logger()
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    model = new_lm(tokenizer).train()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    other_parameters = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    momenta = [torch.zeros_like(p) for p in matrices]
    adamw = torch.optim.AdamW(other_parameters, lr=_ADAMW_LR, betas=(0.9, 0.98), weight_decay=0.0)
    step, before_s, level = 0, 0.0, 2
    if scratch is not None and (scratch / "progress.json").exists():
        state = json.loads((scratch / "progress.json").read_text())
        step, before_s, level = state["step"], state["elapsed_s"], state["level"]
        model.load_state_dict(load_file(scratch / "last.safetensors"), strict=False)
        model.tie_weights()
    lessons = _Lessons(Random(f"texts {seed} {step}"), level)
    start, budget_s, saved_s = time.process_time(), minutes * 60, before_s
    while (elapsed_s := before_s + time.process_time() - start) < budget_s:
        progress_share = elapsed_s / budget_s
        scale = min(1.0, progress_share / 0.02 + 0.05) * min(1.0, max(0.01, (1 - progress_share) / 0.6))
        for group in adamw.param_groups:
            group["lr"] = _ADAMW_LR * scale
        level, texts = lessons.next_batch(progress_share)
        loss = model(**collate(tokenizer, texts)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other_parameters, 1.0)
        _muon_step(matrices, momenta, _MUON_LR * scale)
        adamw.step()
        model.zero_grad(set_to_none=True)
        step += 1
        lessons.record(level, loss.item())
        if step % 50 == 0:
            progress.say(f"lm {elapsed_s:.0f} s step {step} level {lessons.level} loss {lessons.loss:.4f}")
        if scratch is not None and elapsed_s - saved_s > _SAVE_EVERY_S:
            saved_s = elapsed_s
            _save_state(scratch, model, {"step": step, "elapsed_s": elapsed_s, "level": lessons.level})
    model.eval()
    cpu_seconds = round(before_s + time.process_time() - start)
    card = new_card(model, tokenizer, seed=seed, train_steps=step, cpu_seconds=cpu_seconds)
    save_lm(out, model, tokenizer)
    write_card(out, card)
    if not card["gate"]["passed"]:
        missed = ", ".join(card["gate"]["missed"])
        progress.warn(f"warning: the language model missed its gate of {GATE}: {missed}. Train longer: --lm-minutes")
    return card


def new_card(
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, seed: int, train_steps: int, cpu_seconds: int
) -> dict[str, Any]:
    """What the model is and how it scores."""
    scores = score_lm(model, tokenizer)
    missed = [name for name, score in scores.items() if score < GATE]
    return {
        "name": "worldlet small language model",
        "class": "Gemma2ForCausalLM",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": "random grounded questions and answers without physics (train/worldlet/grammar.py)",
        "seed": seed,
        "train_steps": train_steps,
        "cpu_seconds": cpu_seconds,
        "gate": {"required": GATE, "passed": not missed, "missed": missed, "texts": GATE_TEXTS, "scores": scores},
    }


@dataclass
class _Lessons:
    """Which texts come next: pairs of facts until they are mastered, then more and more facts at once."""

    rng: Random
    level: int = 2
    loss: float = 1.0
    """Running mean at the present level."""

    def next_batch(self, progress_share: float) -> tuple[int, list[Text]]:
        """The level of a batch and its texts, for a training of which a share of `progress_share` (0 to 1) is over."""
        scheduled = int(2 + (progress_share - 0.2) * 14)  # half of the time is for whole texts
        self.level = max(self.level, min(FULL, scheduled))
        level = self.level if self.rng.random() < _NEW else self.rng.randint(2, self.level)
        plain = self.level == 2
        texts = 192 // level  # 3,000 to 4,000 tokens
        return level, [
            sample_things(self.rng, plain=plain and self.rng.random() < 0.5)
            if self.rng.random() < _NAMES
            else sample_text(self.rng, level=level, plain=plain and self.rng.random() < 0.5)
            for _ in range(texts)
        ]

    def record(self, level: int, loss: float) -> None:
        """Take note of a batch's loss, and of what is mastered."""
        if level == self.level:
            self.loss += 0.05 * (loss - self.loss)
        if self.loss < _MASTERED and self.level < FULL:
            self.level, self.loss = self.level + 1, 1.0


@torch.no_grad()
def _muon_step(matrices: list[torch.nn.Parameter], momenta: list[Tensor], lr: float) -> None:
    """Orthogonalised momentum, in fp32: torch.optim.Muon works in bf16, 10 times slower on a CPU without it."""
    for parameter, momentum in zip(matrices, momenta, strict=True):
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
    follow_umask(weights)


def write_card(out: Path, card: dict[str, Any]) -> None:
    """Write card.json and the README that says the same in words."""
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    scores = card["gate"]["scores"]
    missed = ", ".join(card["gate"]["missed"]) or "none"
    shares = "".join(f"| {name} | {scores[name]:.1%} |\n" for name in scores)
    (out / "README.md").write_text(
        "# The worldlet's small language model\n\n"
        "A `Gemma2ForCausalLM` with a word-level tokenizer, trained from nothing on random statements and\n"
        "questions about them: it reads stated answers and knows no physics. Made by `build_lm` of\n"
        "`theworld.train.worldlet.build`.\n\n"
        f"Right on {card['gate']['texts']} unseen texts, each with all that the answer could be mistaken for,\n"
        f"by answer family and by question (at least {GATE:.0%} each is required; missed: {missed}):\n\n"
        f"| what | right |\n|---|---|\n{shares}"
    )


def _save_state(scratch: Path, model: Gemma2ForCausalLM, position: dict[str, float]) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    replace(scratch, scratch / "last.safetensors", save(state))
    replace(scratch, scratch / "progress.json", json.dumps(position).encode())
