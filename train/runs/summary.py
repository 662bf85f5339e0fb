"""The figures of a finished training, for the terminal and for programs. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ...pipeline.messages import command


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The figures of a finished training."""

    run: Path
    train_steps: int
    seconds: float
    first_loss: float
    last_loss: float
    world_tokens: int
    """Per question."""
    supervised_tokens: int
    trainable: int
    """Parameters."""
    questions: int
    evaluation_split: str = "test"
    """Which split to evaluate: `test`, or what the questions have instead; `train` where there is nothing else."""

    @property
    def next_command(self) -> str:
        """What to type next."""
        split = [] if self.evaluation_split == "test" else ["--split", self.evaluation_split]
        return command("evaluate", self.run, *split)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**asdict(self), "run": str(self.run), "next_command": self.next_command}

    def summary(self) -> str:
        """A few lines for the terminal."""
        note = "note: no question has a split of its own for tests, so the next command evaluates training questions"
        return (
            f"{self.run}: {self.train_steps} updates on {self.questions} questions in {self.seconds:.0f} s, "
            f"loss {self.first_loss:.3f} -> {self.last_loss:.3f}\n"
            f"{self.trainable:,} trained parameters, {self.world_tokens} world tokens a question, "
            f"{self.supervised_tokens:,} answer tokens learned\n"
            f"next: {self.next_command}" + f"\n{note}" * (self.evaluation_split == "train")
        )
