"""Other libraries' ways to read chosen samples from a bucket, and MDS's stream, for benchmarks/bucket.py.

Each in the fastest way that it documents, with at least as many requests at once as ours and with batches read ahead
where it can: the stores of store_peers.py, uploaded as they are.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .bucket_server import BUCKET
from .store_peers import Batches, Rows, Samples, in_batches, mosaicml_streaming

IN_FLIGHT, AHEAD = 128, 6
"""Requests at once, and batches: those of ours."""
Stream = Callable[[list[Rows]], Iterator[Samples]]
"""batches of rows -> the samples of each, in order"""


def peers(shape: tuple[int, ...], folder: Path) -> dict[str, Stream]:
    """By name; of the samples of this shape (C, T, H, W), as store_peers.py wrote them to a folder."""
    return {
        "tensorstore, batch by batch": open_tensorstore(shape, ahead=0),
        f"tensorstore, {AHEAD} batches ahead, nothing rechecked": open_tensorstore(shape, ahead=AHEAD),
        "zarr-python + obstore, a call a sample": open_zarr(shape, at_once=1),
        f"zarr-python + obstore, {IN_FLIGHT} calls at once": open_zarr(shape, at_once=IN_FLIGHT),
        "boto3, 64 threads": open_boto3(shape, folder),
    }


def open_tensorstore(shape: tuple[int, ...], *, ahead: int) -> Stream:
    """`array[rows].read()` with its own settings; or with ours, which is more than its pages show."""
    import tensorstore

    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": {"driver": "s3", "bucket": BUCKET, "path": "zarr/", "endpoint": os.environ["AWS_ENDPOINT_URL_S3"],
                    "aws_region": os.environ["AWS_REGION"]},
        "context": {
            "cache_pool": {"total_bytes_limit": 4 * 2**20},  # holds the shards' indices, not the samples
        },
    }  # fmt: skip
    if ahead:
        spec["context"] |= {"s3_request_concurrency": {"limit": IN_FLIGHT}, "data_copy_concurrency": {"limit": 2}}
        spec |= {"recheck_cached_data": False, "recheck_cached_metadata": False}  # else it asks for the indices again
    array = tensorstore.open(spec, open=True, read=True).result()

    def stream(batches: list[Rows]) -> Iterator[Samples]:
        def start(rows: Rows) -> tuple[Any, Samples]:
            out = np.empty((len(rows), *shape), np.float16)
            return tensorstore.array(out).write(array[rows]), out

        for written, out in _ahead(start, batches, ahead):
            written.result()
            yield out

    return stream


def open_zarr(_: tuple[int, ...], *, at_once: int) -> Stream:
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    store = ObjectStore(S3Store(BUCKET, prefix="zarr", client_options={"allow_http": True}), read_only=True)
    if at_once == 1:
        array: Any = zarr.open_array(store, mode="r")
        return lambda batches: (np.stack([array[int(row)] for row in rows]) for rows in batches)
    zarr.config.set({"async.concurrency": at_once})
    loop = asyncio.new_event_loop()
    opened: Any = loop.run_until_complete(zarr.api.asynchronous.open_array(store=store, mode="r"))

    async def batch(rows: Rows) -> Samples:
        return np.stack(await asyncio.gather(*(opened.getitem(int(row)) for row in rows)))

    def stream(batches: list[Rows]) -> Iterator[Samples]:
        for task in _ahead(lambda rows: loop.create_task(batch(rows)), batches):
            yield loop.run_until_complete(task)

    return stream


def open_boto3(shape: tuple[int, ...], folder: Path) -> Stream:
    """Bare requests for the bytes of a sample, at places that are known: no format, no checksum."""
    import boto3
    from botocore.config import Config

    [payload] = folder.glob("raw/latents.bin")
    size = int(np.prod(shape)) * 2
    client = boto3.client(
        "s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"],
        config=Config(max_pool_connections=64, s3={"addressing_style": "path"}),
    )  # fmt: skip
    pool = ThreadPoolExecutor(64)
    key = payload.relative_to(folder).as_posix()

    def one(row: int, out: Samples) -> None:
        asked = f"bytes={row * size}-{(row + 1) * size - 1}"
        body = client.get_object(Bucket=BUCKET, Key=key, Range=asked)["Body"].read()
        out[...] = np.frombuffer(body, np.float16).reshape(shape)

    def stream(batches: list[Rows]) -> Iterator[Samples]:
        def start(rows: Rows) -> tuple[list[Any], Samples]:
            out = np.empty((len(rows), *shape), np.float16)
            return [pool.submit(one, int(row), sample) for row, sample in zip(rows, out, strict=True)], out

        for reads, out in _ahead(start, batches):
            for each in reads:
                each.result()
            yield out

    return stream


def stream_mds() -> Batches:
    """One shuffled epoch, fetched to an empty folder."""
    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL_S3"]
    module = mosaicml_streaming()
    module.base.util.clean_stale_shared_memory()  # of the one opened before
    local = tempfile.mkdtemp(prefix="theworld-mds-")
    try:
        dataset = module.StreamingDataset(
            remote=f"s3://{BUCKET}/mds", local=local, shuffle=True, batch_size=32, num_canonical_nodes=1,
            predownload=2048,  # its default is eight batches, and slower here
        )  # fmt: skip
        yield from in_batches((sample["row"], sample["latent"]) for sample in dataset)
    finally:
        shutil.rmtree(local, ignore_errors=True)


def _ahead(start: Callable[[Rows], Any], batches: Iterable[Rows], ahead: int = AHEAD) -> Iterator[Any]:
    """What `start` returns of each batch, begun so many batches before it is wanted."""
    begun: deque[Any] = deque()
    for rows in batches:
        begun.append(start(rows))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun
