"""Writers of one bucket, to be killed: as the store commits, and as one would without thinking of a bad day.

Imported by a process that forks the writers, so it imports little and opens nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from theworld.pipeline.files.places.bucket import Bucket
from theworld.pipeline.store.folder import open_store, open_to_add

from ..s3_server import BUCKET, S3Server
from .harness import RECIPE, create, key, latent

FOLDER = "kills"
CACHE = f"s3://{BUCKET}/cache"
STORE = f"{CACHE}/tiny-{RECIPE.id[:12]}"
Commit = Callable[[Bucket, int, str], int]


def payload_of(name: str) -> bytes:
    """Each shard has its own bytes."""
    return f"{name} ".encode() * 200


def record_of(name: str) -> bytes:
    return json.dumps({"name": name, "sha256": hashlib.sha256(payload_of(name)).hexdigest()}).encode()


def as_the_store(bucket: Bucket, number: int, name: str) -> int:
    """The payload under the next free number, then its record, which makes it visible."""
    while bucket.entry(f"shards/{number}.tar") is not None or not bucket.create(
        f"shards/{number}.tar", payload_of(name)
    ):
        number += 1
    if not bucket.create(f"commits/{number}.json", record_of(name)):
        raise AssertionError(f"the record of {number} was there, and the payload was ours")
    return number


def the_store(bucket: Bucket, number: int, name: str) -> int:  # noqa: ARG001
    """The store itself: a shard of one sample, committed."""
    writer, serial = map(int, name.split("."))
    store = open_to_add(STORE)
    with store.new_shard() as shard:
        shard.add(key_of(name), latent((1000 * writer + serial) % 4096))
        record = shard.commit({})
    assert record is not None, "nobody else has this key"
    return record.shard


def key_of(name: str) -> str:
    writer, serial = map(int, name.split("."))
    return key(2**32 * writer + serial)


def list_then_put(bucket: Bucket, number: int, name: str) -> int:
    """Naive: the next number of a listing, and plain PUTs."""
    number = next_number(bucket)
    bucket.replace(f"shards/{number}.tar", payload_of(name))
    bucket.replace(f"commits/{number}.json", record_of(name))
    return number


def record_first(bucket: Bucket, number: int, name: str) -> int:
    """Naive: the record takes the number, then the payload comes."""
    while not bucket.create(f"commits/{number}.json", record_of(name)):
        number += 1
    bucket.create(f"shards/{number}.tar", payload_of(name))
    return number


def believe_errors(bucket: Bucket, number: int, name: str) -> int:  # noqa: ARG001
    """Naive: takes "already exists" for what it says, and does not look."""
    client = S3Store(BUCKET, prefix=FOLDER, client_options={"allow_http": True})
    while True:
        try:
            obstore.put(client, f"shards/{number}.tar", payload_of(name), mode="create")
            break
        except AlreadyExistsError:
            number += 1
    with suppress(AlreadyExistsError):  # the number is ours, so it must be our own record
        obstore.put(client, f"commits/{number}.json", record_of(name), mode="create")
    return number


WAYS: dict[str, Commit] = {
    way.__name__: way for way in (the_store, as_the_store, list_then_put, record_first, believe_errors)
}


def next_number(bucket: Bucket) -> int:
    numbers = (int(entry.name.rpartition("/")[2].removesuffix(".json")) for entry in bucket.entries("commits"))
    return 1 + max(numbers, default=0)


def write_forever(variables: dict[str, str], way: str, writer: int, acknowledged: Path) -> None:
    """Commit shard after shard; a line of the file tells of each that was acknowledged."""
    os.environ.update(variables)
    bucket = Bucket(f"s3://{BUCKET}/{FOLDER}")
    fd = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    number = next_number(bucket)
    for serial in itertools.count():
        name = f"{writer}.{serial}"
        number = WAYS[way](bucket, number, name)
        os.write(fd, f"{name} {number}\n".encode())
        number += 1


@dataclass
class Found:
    """What is in the bucket after the kills, beside what was acknowledged."""

    kills: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    """Numbers that two shards were told, and shards under two numbers."""
    half: list[str] = field(default_factory=list)
    """Records whose payload is not there, or is another's."""
    orphans: int = 0
    """Payloads that no record names: a killed writer's, which nobody sees."""
    ended: int = 0
    """Writers that ended by themselves."""

    def __str__(self) -> str:
        return (
            f"{self.kills:,} kills, {self.acknowledged:,} shards acknowledged, {len(self.lost)} lost, "
            f"{len(self.twice)} twice, {len(self.half)} half visible, {self.orphans} orphans, "
            f"{self.ended} writers gave up"
        )

    @property
    def is_broken(self) -> bool:
        return bool(self.lost or self.twice or self.half)


def judge(server: S3Server, lines: list[str]) -> Found:
    """Look at every object."""
    found = Found(acknowledged=len(lines))
    prefix = f"{FOLDER}/commits/"
    records = {
        int(name.removeprefix(prefix).removesuffix(".json")): json.loads(stored.content)
        for name, stored in server.objects.items()
        if name.startswith(prefix)
    }
    payloads = {name: stored.content for name, stored in server.objects.items() if "/shards/" in name}
    told = [(name, int(number)) for name, number in (line.split() for line in lines)]
    found.lost = [name for name, number in told if records.get(number, {}).get("name") != name]
    numbers, names = Counter(number for _, number in told), Counter(record["name"] for record in records.values())
    found.twice = [str(each) for counts in (numbers, names) for each, times in counts.items() if times > 1]
    found.half = [
        str(number)
        for number, record in records.items()
        if hashlib.sha256(payloads.get(f"{FOLDER}/shards/{number}.tar", b"")).hexdigest() != record["sha256"]
    ]
    found.orphans = len(payloads.keys() - {f"{FOLDER}/shards/{number}.tar" for number in records})
    return found


def judge_store(server: S3Server, lines: list[str]) -> Found:
    """As `judge`, of a store: its records against what was told, and every payload against its record."""
    store = open_store(STORE)
    records = {record.shard: record for record in store.records()}
    folder = str(store.place).removeprefix(f"s3://{BUCKET}/")
    payloads = {name: stored.content for name, stored in server.objects.items() if f"{folder}/latents/c/" in name}
    told = [(key_of(name), int(number)) for name, number in (line.split() for line in lines)]
    numbers, keys = (
        Counter(number for _, number in told),
        Counter(key for each in records.values() for key in each.keys),
    )
    whole = {(int(name.split("/")[-5]), hashlib.sha256(content).hexdigest()) for name, content in payloads.items()}
    return Found(
        acknowledged=len(lines),
        lost=[key for key, number in told if number not in records or key not in records[number].keys],
        twice=[str(each) for counts in (numbers, keys) for each, times in counts.items() if times > 1],
        half=[str(number) for number, record in records.items() if (number, record.sha256) not in whole],
        orphans=len(payloads) - len(records),
    )


def kill_writers(server: S3Server, folder: Path, *, way: str, writers: int, kills: int, seed: int) -> Found:
    """Let writers race, kill one after the other at random and begin another in its place; then judge."""
    context, draw, done, ended = get_context("forkserver"), random.Random(seed), 0, 0
    context.set_forkserver_preload([__name__])
    number = itertools.count()

    def begin() -> BaseProcess:
        arguments = (server.variables(), way, next(number), folder / f"{way}.acknowledged")
        process = context.Process(target=write_forever, args=arguments, daemon=True)
        process.start()
        return process

    if way == "the_store":
        create(CACHE, "zarr")
    running = [begin() for _ in range(writers)]
    try:
        while done < kills and ended < kills:
            time.sleep(draw.uniform(0, 0.2))
            chosen = draw.randrange(writers)
            if running[chosen].is_alive():
                running[chosen].kill()
                done += 1
            else:
                ended += 1
            running[chosen].join()
            running[chosen] = begin()
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.join()
    time.sleep(0.5)  # for requests of the dead, which the server may still be answering
    acknowledged = folder / f"{way}.acknowledged"
    look = judge_store if way == "the_store" else judge
    found = look(server, acknowledged.read_text().splitlines() if acknowledged.exists() else [])
    found.kills, found.ended = done, ended
    return found
