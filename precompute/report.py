"""How a precompute run ended, for people and for scripts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pipeline.ledger import Failure
from ..pipeline.recipe import Recipe
from .kinds import KINDS
from .plan import Plan


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a run ended."""

    store: Path
    recipe: Recipe
    plan: Plan
    written: int = 0
    failures: tuple[Failure, ...] = ()
    """New ones of this run."""
    seconds: float = 0.0
    """Wall time of the work, start-up of the workers left out."""
    worker_seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Summed over workers, by phase."""
    bytes_written: int = 0
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """What is to be known of inputs that were used -> how many."""
    dry_run: bool = False

    @property
    def bad(self) -> int:
        """Inputs of this run without a latent."""
        return len(self.failures) + len(self.plan.failed_before)

    def summary(self) -> str:
        """What a person reads at the end: what happened, what failed and why, and what to type next."""
        if self.dry_run:
            return "dry run: nothing was written"
        kind = KINDS[self.recipe.kind]
        lines: list[str] = []
        if self.written:
            rate = self.written / self.seconds if self.seconds else 0.0
            phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.worker_seconds.items())
            lines.append(
                f"{self.written} {kind.makes} in {self.seconds:.1f} s ({rate:.1f} {kind.takes}s/s), "
                f"{self.bytes_written / 2**20:.1f} MiB; worker time: {phases}"
            )
        else:
            lines.append(f"nothing to do: {self.plan.done} of {self.plan.inputs} {kind.takes}s have their latents")
        lines.extend(f"note: {count} {kind.takes}s are {note}" for note, count in self.notes.items())
        if self.bad:
            reasons = Counter(f.reason for f in (*self.failures, *self.plan.failed_before))
            lines.append(f"{self.bad} inputs failed ({', '.join(f'{n} {reason}' for reason, n in reasons.items())}):")
            shown = (*self.failures, *self.plan.failed_before)[:5]
            lines.extend(f"  {failure.reason:>10}  {failure.message}" for failure in shown)
            if self.bad > len(shown):
                lines.append(f"  … and {self.bad - len(shown)} more, one file each in {self.store / 'failed'}")
            lines.append("all others are done; --retry-failed tries these again, --max-bad N accepts N of them")
        lines.append(f"store: {self.store}")
        lines.append(f"next:  {kind.next_command.format(store=self.store, cache=self.store.parent)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "store": str(self.store),
            "recipe_id": self.recipe.id,
            "kind": self.recipe.kind,
            "images": self.plan.inputs,
            "done_before": self.plan.done,
            "written": self.written,
            "failed": self.bad,
            "failures": [
                {"source": f.source, "reason": f.reason, "message": f.message}
                for f in (*self.failures, *self.plan.failed_before)
            ],
            "notes": self.notes,
            "bytes": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "dry_run": self.dry_run,
        }
