"""Writes the stores of this folder: `python -m tests.golden.make VERSION`, once for each version that changes them.

A store here is never written again: every later version must read it, to the bit, and must be able to add to it.
"""

import sys
from pathlib import Path

from theworld.pipeline.store.ledger import Failure

from ..miniatures.store import TINY, create, key, latent

GOLDEN = Path(__file__).parent
SAMPLES = 6
DTYPES = ("float16", "bfloat16", "float32")
FAILURE = Failure(source="bad.png", key=None, reason="decode", message="not an image", attempts=1)


def main(version: str) -> None:
    for format in ("zarr", "webdataset"):
        for dtype in DTYPES:
            cache = GOLDEN / version / f"{format}-{dtype}"
            store = create(cache, recipe=TINY.model_copy(update={"dtype": dtype}), format=format)
            store.record_sources((f"{number}.png", key(number)) for number in range(SAMPLES))
            store.record_failure(FAILURE)
            for shard, numbers in enumerate((range(4), range(4, SAMPLES))):
                with store.new_shard(shard) as writer:
                    for number in numbers:
                        writer.add(key(number), latent(number))
                    writer.commit({"host": "golden", "seconds": {"rollout": 1.5}})
            store.publish()


if __name__ == "__main__":
    main(sys.argv[1])
