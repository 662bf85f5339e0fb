"""The report of a precompute run, for people and for scripts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...pipeline.latents.recipe import Recipe
from ...pipeline.messages import command, format_bytes, format_rate, printable
from ...pipeline.store.ledger import Failure
from ..rollout.kinds import KINDS
from .planning.cost import Cost
from .planning.memory_plan import MemoryPlan
from .planning.plan import Plan, first_failures
from .scheduler import Work


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one precompute run made, and what failed."""

    store: Path | str
    """Its path, or its URL."""
    recipe: Recipe
    plan: Plan
    cost: Cost | None = None
    memory: MemoryPlan | None = None
    work: Work = field(default_factory=Work)
    failures: tuple[Failure, ...] = ()
    """New ones of this run."""
    empty_rows: int = 0
    """Of the Zarr array, where they are more than its samples and its shards are many."""
    stored: int = 0
    """Latents in the store, of this run and of others."""
    dry_run: bool = False

    @property
    def written(self) -> int:
        """Latents made and committed."""
        return self.work.written

    @property
    def _failed(self) -> tuple[Failure, ...]:
        """All inputs of this run without a latent, as far as is known; those of a dry run were only listed."""
        return (*(self.plan.refused if self.dry_run else self.failures), *self.plan.failed_before)

    @property
    def reasons(self) -> dict[str, int]:
        """Failures by type: reason -> how many inputs of this run have no latent for it."""
        return dict(Counter(failure.reason for failure in self._failed))

    @property
    def bad(self) -> int:
        """How many inputs of this run have no latent because they failed; of a dry run, those that failed before."""
        return len(self.failures) + len(self.plan.failed_before)

    @property
    def next_command(self) -> str:
        """What to type next. Questions about the worldlet's scenes lie beside the store; a user names all others."""
        scene_questions = self.store.parent / "scenes" / "questions.jsonl" if isinstance(self.store, Path) else None
        has_questions = (
            self.recipe.traits.is_image_rollout and scene_questions is not None and scene_questions.is_file()
        )
        return command("train", self.store, *([] if has_questions else ["--questions", "QUESTIONS.jsonl"]))

    def summary(self) -> str:
        """The result in words: what was made, what failed and why, and what to type next."""
        return "\n".join(map(printable, self.lines()))

    def lines(self) -> list[str]:
        """`summary`, line by line."""
        if self.dry_run:
            return [*self._lines_of_failures(), "dry run: nothing was written"]
        kind = KINDS[self.recipe.kind]
        lines: list[str] = []
        work = self.work
        if work.written:
            rate = work.written / work.seconds if work.seconds else 0.0
            retries = f"; {work.retries} retries" if work.retries else ""
            hours = f"{work.worker_hours:.2f} worker-hours"
            if work.gpu_hours:
                hours = f"{work.gpu_hours:.2f} GPU-hours"
            phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in work.phases.items())
            lines.append(
                f"{work.written} {kind.makes} in {work.seconds:.1f} s ({format_rate(rate, f'{kind.takes}s')}), "
                f"{format_bytes(work.bytes_written)} in {work.shards} shard{'s' * (work.shards != 1)} of this job; "
                f"{hours} on {work.device}, of them loading {work.load_s:.1f} s a worker, {phases}{retries}"
            )
        elif self.plan.todo and not work.elsewhere:
            lines.append(f"none of {len(self.plan.todo)} {kind.makes} could be made")
        elif not work.elsewhere:
            distinct = self.plan.inputs - self.plan.duplicates
            sharing = f"; {self.plan.duplicates} more share them" * bool(self.plan.duplicates)
            distinct -= self.plan.of_other_parts
            dropped = f"; {len(self.plan.dropped)} dropped on purpose" if self.plan.dropped else ""
            lines.append(
                f"nothing to do: {self.plan.done} of {distinct} {kind.takes}s have their latents{sharing}{dropped}"
            )
        if work.elsewhere:
            lines.append(
                f"{work.elsewhere} {kind.makes} were made here too, but another job had committed them before: give "
                "each job a part, --part I/N"
            )
        if self.empty_rows:
            lines.append(
                f"note: {self.empty_rows:,} rows of the Zarr array are empty, as shards are not full: "
                f"{command('cache', 'compact', self.store)} says what it would take to fill them"
            )
        lines.extend(
            f"note: {count} {kind.takes}{'s' * (count != 1)}: {note}" for note, count in sorted(work.notes.items())
        )
        if note := self._wrong_estimate():
            lines.append(note)
        if self.bad:
            lines += self._lines_of_failures()
            others = "all others of this part" if self.plan.of_other_parts else "all others"
            done = (
                f"{others} are done" if self.plan.done or self.written or self.work.elsewhere else "there are no others"
            )
            lines.append(f"{done}; --retry-failed tries these again, --max-bad N accepts N of them")
        if left_out := self.plan.named_left_out():
            lines.append(f"left out: {left_out}")
        lines.append(f"store: {self.store}")
        if self.stored:
            lines.append(f"next:  {self.next_command}")
        else:
            lines.append("the store is empty, so there is nothing to train on yet")
        return lines

    def _wrong_estimate(self) -> str | None:
        """The note where memory was estimated wrongly. Nothing is known of an estimate for batches that were halved."""
        if self.memory is None or self.work.batch_size != self.memory.batch:
            return None
        return self.memory.wrong(self.work.peak_bytes)

    def _lines_of_failures(self) -> list[str]:
        if not self._failed:
            return []
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        outcome = "cannot be read" if self.dry_run and not self.plan.failed_before else "failed"
        failures = first_failures(self._failed)
        lines = [f"{len(self._failed)} inputs {outcome} ({reasons}):"]
        lines += (f"  {failure.reason:>10}  {failure.message}" for failure in failures)
        if rest := len(self._failed) - len(failures):
            lines.append(f"  … and {rest} more" + f": {command('cache', 'failed', self.store)}" * (not self.dry_run))
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "store": str(self.store),
            "recipe_id": self.recipe.id,
            "kind": self.recipe.kind,
            "images": self.plan.inputs,
            "done_before": self.plan.done,
            "written": self.written,
            "shards": self.work.shards,
            "made_elsewhere": self.work.elsewhere,
            "of_other_parts": self.plan.of_other_parts,
            "failed": self.bad,
            "failures": [{"source": f.source, "reason": f.reason, "message": f.message} for f in self._failed],
            "reasons": self.reasons,
            "left_out": self.plan.passed_over,
            "notes": dict(self.work.notes),
            "bytes": self.work.bytes_written,
            "todo": len(self.plan.todo),
            "todo_bytes": len(self.plan.todo) * self.plan.sample_bytes,
            **(self.cost.to_json() if self.cost else {}),
            "memory": {**(self.memory.to_json() if self.memory else {}), "peak_bytes": self.work.peak_bytes},
            "seconds": round(self.work.seconds, 3),
            "load_s": round(self.work.load_s, 3),
            "worker_hours": round(self.work.worker_hours, 5),
            "gpu_hours": round(self.work.gpu_hours, 5),
            "worker_seconds": {phase: round(seconds, 3) for phase, seconds in self.work.phases.items()},
            "retries": self.work.retries,
            "dry_run": self.dry_run,
        }
