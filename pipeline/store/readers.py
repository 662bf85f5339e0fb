"""Which reader the rows of a store are read by: files by their paths, objects by requests for their parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LatentShapeError
from ..files.places import Place
from ..latents.spec import latent_frames
from .buffer import BatchBuffer
from .catalog import Catalog
from .formats.base import ShardLayout
from .records import read_record
from .row_reader import GONE, RowReader

_IN_FLIGHT = 64


def row_reader(place: Place, layout: ShardLayout, recipe_id: str, catalog: Catalog) -> RowReader:
    """The reader of a store at a place."""
    if place.is_local:
        return RowReader(place, layout, recipe_id, catalog)
    return RangeReader(place, layout, recipe_id, catalog)


class RangeReader(RowReader):
    """As `RowReader`, of a store in a bucket: each row by requests for its bytes, many at once, checked every time."""

    def read(self, rows: NDArray[np.int64], buffer: BatchBuffer) -> NDArray[Any]:
        """The latents at some rows: `LatentStore.read_rows`; raises as there."""
        if len(rows) > len(buffer):
            raise LatentShapeError(f"{len(rows)} samples do not fit a buffer of {len(buffer)}")
        samples = range(len(rows))
        if len(rows) < 2:
            for sample, row in zip(samples, rows.tolist(), strict=True):
                self._read_row(row, buffer, sample)
        else:
            with ThreadPoolExecutor(min(_IN_FLIGHT, len(rows)), "rows") as pool:
                for read in [pool.submit(self._read_row, row, buffer, n) for n, row in enumerate(rows.tolist())]:
                    read.result()
        return buffer.latents[: len(rows)]

    def _read_row(self, row: int, buffer: BatchBuffer, sample: int) -> None:
        number, place = divmod(row, self._layout.shard_size)
        shard = self._catalog.index.shards.get(number)
        if shard is None:  # a refresh in another thread
            raise self.damaged(number, GONE)
        name, start = self._layout.payload_name(number), place * self._layout.row_bytes
        for offset, size, memory in buffer.pieces:
            try:
                read = self._store.read_into(name, start + offset, memory[sample][0])
            except FileNotFoundError as error:
                raise self.damaged(number, "it is missing") from error
            if read != size:
                raise self.damaged(number, f"it ends within row {place}")
        frames = latent_frames(buffer.rollout_steps)
        stated = self._layout.checksums(buffer.rows[sample], frames)
        recorded: list[int] = shard.frames_crc32c[place, :frames].tolist()
        if stated is not None and stated[: len(recorded)] != recorded:  # a snapshot's checksums have no seal
            recorded = read_record(self._store, number, self._recipe_id).checksums()[place, :frames].tolist()
        if stated is None or stated[: len(recorded)] != recorded:
            raise self.damaged(number, f"row {place} does not match its checksums, or is not the one of its record")
