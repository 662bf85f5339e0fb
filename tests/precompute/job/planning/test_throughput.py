"""What was measured of a world model and shape holds only for runs that keep its weights in the same place."""

from __future__ import annotations

from pathlib import Path

from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.job.planning.throughput import ThroughputLog

RECIPE = Recipe(world="sha256:" + "0" * 64, height=64, width=96)


def test_rates_and_batches_of_offloaded_weights_are_kept_apart(tmp_path: Path) -> None:
    for offload, batch in ((None, 2), ("pinned", 8)):
        log = ThroughputLog.load(tmp_path, offload=offload)
        log.note_batch(RECIPE, "a card", batch)
        log.note_rate(RECIPE, "a card", 100, 10 * batch)
        log.save(tmp_path)
    for offload, batch in ((None, 2), ("pinned", 8)):
        log = ThroughputLog.load(tmp_path, offload=offload)
        assert log.fitted(RECIPE) == {"a card": batch}
        assert log.by_device(RECIPE)["a card"].per_worker_s == 10 / batch
    assert ThroughputLog.load(tmp_path, offload="mapped").fitted(RECIPE) == {}
