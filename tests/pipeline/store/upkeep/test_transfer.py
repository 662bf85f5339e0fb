"""Copies between stores: the same bits under the same id, nothing twice, nothing silently left out."""

import hashlib
import os
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from theworld.pipeline.errors import ConfigError, MissingLatentError, StoreError, StoreMismatchError
from theworld.pipeline.store import latent_store
from theworld.pipeline.store.folder import LatentStore, StoreFormat, create_store, load_store, open_store
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.prompt_files import prompt_name
from theworld.pipeline.store.records import origins_of
from theworld.pipeline.store.upkeep import transfer
from theworld.pipeline.store.upkeep.transfer import Copied, export, keys_of_sources, merge, read_keys
from theworld.pipeline.store.upkeep.verify import verify

from ....faults.harness import Cut, FaultyFileLayer, finish, layer, start
from ....miniatures.store import SPEC, TINY, create, expected, fill, flip, key, latent, write
from ....permissions import contents, listing, poison, record, record_file

FORMATS: tuple[StoreFormat, ...] = ("zarr", "webdataset")
OTHER: dict[str, StoreFormat] = {"zarr": "webdataset", "webdataset": "zarr"}


@pytest.fixture(params=FORMATS)
def source(request: pytest.FixtureRequest, cache: Path) -> LatentStore:
    """Ten samples in shards of 4, 4 and 2, each of a photograph `<n>.png`."""
    store = create(cache / "source", format=request.param)
    fill(store, 10)
    store.record_sources((f"photos/{n}.png", key(n)) for n in range(10))
    return store


def holds_exactly(store: LatentStore, numbers: list[int] | range) -> None:
    """Those samples, whole, right, and each there once."""
    assert sorted(store.keys) == [key(n) for n in sorted(numbers)]
    assert sum(shard.rows for shard in store.shards.values()) == len(numbers)
    np.testing.assert_array_equal(store.read([key(n) for n in numbers]), expected(store, list(numbers)))
    done = verify(store.path, level="deep")
    assert {f.what for f in done.findings} <= {"unmade"}, "also the index and Zarr's shape are up to date"


def summary(copied: Copied) -> tuple[int, int, int]:
    return copied.copied, copied.present, len(copied.damaged)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back_again_is_byte_for_byte_the_same(cache: Path, format: StoreFormat, dtype: str) -> None:
    there = create(cache / "a", recipe=TINY.model_copy(update={"dtype": dtype}), format=format)
    fill(there, 10)
    over, copied = export(there, cache / "b", format=OTHER[format])
    assert summary(copied) == (10, 0, 0)
    back, _ = export(open_store(over.path), cache / "c", format=format)
    assert (there.format, over.format, back.format) == (format, OTHER[format], format)
    assert there.recipe.id == over.recipe.id == back.recipe.id
    assert there.spec == back.spec
    assert there.keys == over.keys == back.keys
    bits = [store.read(store.keys).tobytes() for store in (there, over, back)]
    assert bits[0] == bits[1] == bits[2]
    for number in there.shards:
        assert there.payload_path(number).read_bytes() == back.payload_path(number).read_bytes()
    for store in (over, back):
        holds_exactly(open_store(store.path), range(10))


def test_a_copy_keeps_format_shard_size_and_name_unless_told_otherwise(source: LatentStore, cache: Path) -> None:
    same, _ = export(source, cache / "same")
    assert (same.format, same.shard_size, same.path.name) == (source.format, 4, source.path.name)
    other, _ = export(source, cache / "other", shard_size=3)
    assert [shard.rows for shard in other.shards.values()] == [3, 3, 3, 1]
    holds_exactly(open_store(other.path), range(10))


def test_a_part_is_copied_in_the_order_it_was_asked_for(source: LatentStore, cache: Path) -> None:
    wanted = [key(n) for n in (7, 2, 9, 2)]
    part, copied = export(source, cache / "part", keys=wanted)
    assert summary(copied) == (3, 0, 0)
    assert part.keys == (key(7), key(2), key(9))
    assert part.sources() == {f"photos/{n}.png": (key(n),) for n in (2, 7, 9)}
    holds_exactly(open_store(part.path), [2, 7, 9])


def test_a_key_that_is_not_there_stops_the_copy_before_it_begins(source: LatentStore, cache: Path) -> None:
    with pytest.raises(MissingLatentError, match=key(77)):
        export(source, cache / "part", keys=[key(1), key(77)])
    assert not (cache / "part").exists()


def test_keys_can_be_chosen_by_the_name_of_their_image(source: LatentStore) -> None:
    source.record_sources([("later/1.png", key(1)), ("gone/3.png", key(33))])
    assert keys_of_sources(source, r"photos/[135]\.png$") == [key(1), key(3), key(5)]
    assert keys_of_sources(source, "later") == [key(1)]
    for pattern, words in (("gone", "matches 'gone'"), ("nothing", "matches"), ("(", "regular expression")):
        with pytest.raises(ConfigError, match=words):
            keys_of_sources(source, pattern)


def test_keys_are_read_from_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"{key(1)}\n\n{key(2)}\r\n")
    assert read_keys(file) == [key(1), key(2)]
    file.write_text(f"{key(1)}\nphotos/1.png\n")
    with pytest.raises(ConfigError, match=r"keys\.txt, entry 2: 'photos/1\.png'"):
        read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "absent")


def test_a_copy_into_the_folder_it_comes_from_is_refused(source: LatentStore, cache: Path) -> None:
    (cache / "link").symlink_to(cache / "source")
    before = listing(cache)
    for same in (cache / "source", cache / "link", source.path / ".."):
        with pytest.raises(ConfigError, match="a recipe once"):
            export(source, same, format=OTHER[source.format])
    assert listing(cache) == before


def test_a_folder_that_holds_the_recipe_in_another_format_is_refused(source: LatentStore, cache: Path) -> None:
    fill(create(cache / "there", format=OTHER[source.format]), 2)
    before = contents(cache / "there")
    for format in (source.format, None):
        with pytest.raises(StoreMismatchError, match=f"as {OTHER[source.format]} already"):
            export(source, cache / "there", format=format)
    assert contents(cache / "there") == before


def test_who_gave_no_format_is_not_told_to_leave_it_out(source: LatentStore, cache: Path) -> None:
    fill(create(cache / "there", format=OTHER[source.format]), 2)
    with pytest.raises(StoreMismatchError) as caught:
        export(source, cache / "there")
    assert "Go on without --format" not in str(caught.value)


def test_a_copy_that_was_cut_before_any_file_operation_goes_on(cache: Path) -> None:
    source = create(cache / "source")
    fill(source, 3)
    source.record_sources([("a.png", key(0))])
    for at in range(1, 1000):
        target = cache / str(at)
        faulty = FaultyFileLayer(at)
        cut = False
        with layer(faulty):
            try:
                export(source, target, format="webdataset", shard_size=2)
            except Cut:
                cut = True
        if not cut:
            break
        (path, *_) = [*target.glob("tiny-*/theworld.json"), None]
        there = len(load_store(path.parent)) if path and (path.parent / "commits").is_dir() else 0
        again, copied = export(source, target, format="webdataset", shard_size=2)
        assert summary(copied) == (3 - there, there, 0), faulty.hit
        after = open_store(again.path)
        assert [shard.rows for shard in after.shards.values()] in ([2, 1], [1, 2]), faulty.hit
        assert after.keys == source.keys
        assert after.read(after.keys).tobytes() == source.read(source.keys).tobytes()
        assert after.sources() == source.sources()
        shutil.rmtree(target)
    assert 60 < at < 999


def test_two_copies_at_once_into_one_folder_leave_each_latent_visible_once(source: LatentStore, cache: Path) -> None:
    copies = [start(lambda _: export(open_store(source.path), cache / "b", shard_size=1)) for _ in range(2)]
    for copy in copies:
        finish(*copy)
    target = open_store(cache / "b")
    assert sorted(target.keys) == sorted(source.keys)
    assert target.read(source.keys).tobytes() == source.read(source.keys).tobytes()
    assert verify(target.path, level="deep").damage == ()


def test_a_damaged_sample_is_told_and_the_others_are_copied(source: LatentStore, cache: Path) -> None:
    flip(source.payload_path(1), source.layout.row_bytes + source.layout.reads(1).segments[0][0] + 8)
    for present in (0, 9):
        target, copied = export(open_store(source.path), cache / "b", format=OTHER[source.format])
        assert summary(copied) == (9 - present, present, 1)
        assert str(source.payload_path(1)) in copied.damaged[0]
        assert "row 1" in copied.damaged[0]
        holds_exactly(open_store(target.path), [n for n in range(10) if n != 5])


def test_a_lost_payload_costs_its_own_samples(source: LatentStore, cache: Path) -> None:
    source.payload_path(1).unlink()
    target, copied = export(open_store(source.path), cache / "b")
    assert summary(copied) == (6, 0, 4)
    holds_exactly(open_store(target.path), [0, 1, 2, 3, 8, 9])


def test_a_shard_of_nothing_but_damaged_samples_is_not_made(source: LatentStore, cache: Path) -> None:
    source.payload_path(1).unlink()
    target, copied = export(open_store(source.path), cache / "b", keys=[key(5), key(6)])
    assert summary(copied) == (0, 0, 2)
    assert len(target.shards) == 0
    assert list((target.path / "tmp").iterdir()) == []


def test_numbers_that_are_no_latent_are_told_and_the_others_are_copied(source: LatentStore, cache: Path) -> None:
    poison(source, 5)
    target, copied = export(open_store(source.path), cache / "b")
    assert summary(copied) == (9, 0, 1)
    assert str(source.payload_path(1)) in copied.damaged[0]
    assert key(5) in copied.damaged[0]
    holds_exactly(open_store(target.path), [n for n in range(10) if n != 5])


def test_a_record_that_rots_behind_the_snapshot_does_not_stop_the_copy(
    source: LatentStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 2)
    source.publish()
    file = record_file(source, 1)
    status = file.stat()
    flip(file, 40)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    opened = open_store(source.path)
    assert len(opened) == 10, "the snapshot speaks for it"
    target, copied = export(opened, cache / "b")
    assert any("commits/1.json" in message for message in copied.damaged)
    after = open_store(target.path)
    assert {key(n) for n in (0, 1, 2, 3, 8, 9)} <= set(after.keys)
    numbers = [int(visible, 16) for visible in after.keys]
    np.testing.assert_array_equal(after.read(after.keys), expected(after, numbers))
    assert copied.copied == len(after)


@pytest.mark.parametrize("whose", ["source", "target"])
@pytest.mark.parametrize("folder", ["sources", "failed"])
def test_a_damaged_log_is_told_and_the_latents_are_copied(
    source: LatentStore, cache: Path, whose: str, folder: str
) -> None:
    target = create(cache / "b", format=source.format)
    spoilt = source if whose == "source" else target
    spoilt.record_sources([("other.png", key(0))])
    spoilt.record_failure(Failure(source="b.png", key=None, reason="decode", message="no image", attempts=1))
    file = next((spoilt.path / folder).iterdir())
    flip(file, 20)
    _, copied = export(open_store(source.path), cache / "b")
    assert copied.copied == 10
    if (whose, folder) != ("target", "sources"):  # which nothing here has to read
        assert [str(file) in message for message in copied.damaged] == [True]
    after = open_store(target.path)
    assert after.read(source.keys).tobytes() == source.read(source.keys).tobytes()
    assert [f for f in verify(target.path).findings if f.what == "index"] == []


def test_what_is_known_of_a_shards_making_comes_along(source: LatentStore, cache: Path) -> None:
    with source.new_shard() as shard:
        for number in (20, 21):
            shard.add(key(number), latent(number))
        shard.commit({"host": "there", "seconds": {"rollout": 7.5}, "versions": {"torch": "2"}})
    target, _ = export(source, cache / "b", shard_size=12)
    origins = record(target, 0)["facts"]["copied_from"]
    assert [origin["rows"] for origin in origins] == [4, 4, 2, 2]
    for number, origin in enumerate(origins):
        made = record(source, number)
        assert origin["facts"] == made["facts"]
        assert origin["created"] == made["created"]
        assert origin["sha256"] == hashlib.sha256(source.payload_path(number).read_bytes()).hexdigest()
    assert origins[3]["facts"]["seconds"] == {"rollout": 7.5}


def test_what_is_remembered_does_not_grow_with_the_number_of_copies(cache: Path) -> None:
    store = create(cache / "0", shard_size=4)
    fill(store, 24)
    sizes = []
    for copy in range(1, 7):
        store, _ = export(store, cache / str(copy), shard_size=3 if copy % 2 else 4)
        sizes.append(max(path.stat().st_size for path in (store.path / "commits").iterdir()))
    assert sizes[-1] <= 2 * sizes[0], sizes


def test_sources_failures_and_the_prompt_come_along(source: LatentStore, cache: Path) -> None:
    failed = [
        Failure(source="blank.png", key=None, reason="decode", message="no image", attempts=1),
        Failure(source="odd.png", key=key(50), reason="nan", message="not finite", attempts=2),
    ]
    for failure in failed:
        source.record_failure(failure)
    (source.path / "prompt.safetensors").write_bytes(save({"prompt": np.ones(3, np.float32)}))
    target, _ = export(source, cache / "b")
    assert target.sources() == source.sources()
    assert target.failures() == failed
    assert load((target.path / "prompt.safetensors").read_bytes())["prompt"].tolist() == [1, 1, 1]


def test_prompts_do_not_follow_a_link_out_of_the_target(source: LatentStore, cache: Path) -> None:
    (source.path / "prompts").mkdir()
    (source.path / "prompts" / "a.safetensors").write_bytes(save({"prompt": np.ones(3, np.float32)}))
    target = create(cache / "b")
    (cache / "outside").mkdir()
    (target.path / "prompts").symlink_to(cache / "outside")
    with pytest.raises(StoreError, match="prompts is a symbolic link"):
        merge(target.path, [source])
    assert list((cache / "outside").iterdir()) == []


def test_a_failure_ends_where_another_machine_had_success(cache: Path) -> None:
    one, two = create(cache / "one"), create(cache / "two")
    write(one, [0, 1])
    write(two, [1, 2])
    failure = Failure(source="2.png", key=key(2), reason="oom", message="too large", attempts=1)
    one.record_failure(failure)
    for order in ([one, two], [two, one]):
        target = cache / str(order.index(one))
        merge(target, order)
        assert open_store(target).failures() == []


def three_machines(cache: Path) -> list[LatentStore]:
    """Of one recipe; formats, shard sizes and some samples in common differ."""
    stores = [
        create(cache / "m1", shard_size=4),
        create(cache / "m2", shard_size=3, format="webdataset"),
        create(cache / "m3", shard_size=16),
    ]
    for store, numbers in zip(stores, (range(7), range(5, 12), [20, 3]), strict=True):
        for at in range(0, len(numbers), store.shard_size):
            write(store, list(numbers[at : at + store.shard_size]))
        store.record_sources((f"{store.path.parent.name}/{n}.png", key(n)) for n in numbers)
        store.publish()
    return stores


ALL = [*range(12), 20]


def test_a_merge_brings_all_together_across_formats_and_shard_sizes(cache: Path) -> None:
    machines = three_machines(cache)
    copied = merge(cache / "all", machines)
    assert [summary(each) for each in copied] == [(7, 0, 0), (5, 2, 0), (1, 1, 0)]
    assert [each.source for each in copied] == [machine.path for machine in machines]
    together = open_store(cache / "all")
    holds_exactly(together, ALL)
    assert together.sources() == {name: keys for machine in machines for name, keys in machine.sources().items()}


def test_a_merge_can_be_repeated_and_then_does_nothing(cache: Path) -> None:
    machines = three_machines(cache)
    merge(cache / "all", machines)
    (path,) = (cache / "all").iterdir()
    before = {name: kind for name, kind in listing(path).items() if (path / name).is_file()}
    again = merge(cache / "all", machines)
    assert [summary(each) for each in again] == [(0, 7, 0), (0, 7, 0), (0, 2, 0)]
    assert {name: kind for name, kind in listing(path).items() if (path / name).is_file()} == before


def test_the_order_of_a_merge_does_not_matter(cache: Path) -> None:
    machines = three_machines(cache)
    for at, order in enumerate(permutations(machines)):
        merge(cache / f"all{at}", order)
        together = open_store(cache / f"all{at}")
        holds_exactly(together, ALL)
        assert len(together.sources()) == 16


def test_a_merge_into_a_store_of_its_own_name_goes_into_that_store(cache: Path) -> None:
    machines = three_machines(cache)
    mine = (cache / "m1" / "mine").absolute()
    machines[0].path.rename(mine)
    merge(mine, machines[1:])
    assert [path.name for path in (cache / "m1").iterdir()] == ["mine"]
    holds_exactly(open_store(mine), ALL)


def test_a_merge_into_the_second_store_of_a_folder_leaves_the_first(cache: Path) -> None:
    machines = three_machines(cache)
    first = cache / "m1" / machines[0].path.name.replace("tiny", "aaaa")
    shutil.copytree(machines[0].path, first)
    merge(machines[0].path, machines[1:])
    assert len(load_store(first)) == 7
    holds_exactly(load_store(machines[0].path), ALL)


def test_a_merge_into_where_one_stands_makes_no_store_within(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = three_machines(cache)
    monkeypatch.chdir(machines[0].path)
    merge(Path(), machines)
    assert list(machines[0].path.glob("tiny-*")) == []
    holds_exactly(load_store(machines[0].path), ALL)


def test_a_store_is_not_merged_into_itself_and_that_is_said(cache: Path) -> None:
    machines = three_machines(cache)
    held = len(machines[0])
    first, *others = merge(machines[0].path, machines)
    assert (first.source, first.copied, first.present) == (machines[0].path, 0, held)
    assert [each.source for each in others] == [machine.path for machine in machines[1:]]
    holds_exactly(open_store(machines[0].path), ALL)


@pytest.mark.parametrize("into", ["a new folder", "a store"])
def test_stores_of_other_recipes_are_refused_with_the_field_and_nothing_is_written(cache: Path, into: str) -> None:
    machines = three_machines(cache)
    other = create(cache / "other", recipe=TINY.model_copy(update={"seed": 5, "denoise_steps": 12}))
    write(other, [30])
    before = listing(cache)
    target = cache / "all" if into == "a new folder" else machines[0].path
    for sources in ([*machines, other], [other, *machines]):
        with pytest.raises(StoreMismatchError, match=r"denoise_steps: 1[02].*seed: [05]"):
            merge(target, sources)
    assert listing(cache) == before
    for where, from_ in ((machines[0].path, other), (other.path, machines[0])):
        with pytest.raises(StoreMismatchError, match="seed"):
            merge(where, [from_])
    assert listing(cache) == before


def test_one_recipe_in_two_latent_spaces_never_mixes(cache: Path) -> None:
    one = create(cache / "one")
    spec = SPEC.__class__(channels=3, spatial_stride=8, temporal_stride=4, mean=(1.0,) * 3, std=SPEC.std)
    two = create_store(cache / "two", TINY, spec, label="tiny", shard_size=4)
    write(one, [0])
    write(two, [1])
    before = listing(cache)
    for act in (
        lambda: merge(cache / "all", [one, two]),
        lambda: merge(one.path, [two]),
        lambda: transfer.copy(one, two),
    ):
        with pytest.raises(StoreMismatchError, match="latent space"):
            act()
    assert listing(cache) == before


def test_doubles_and_holes_of_a_source_are_not_copied(cache: Path) -> None:
    source = create(cache / "a")
    write(source, [0, 1])
    with source.new_shard(7) as shard:
        for number in (1, 2):
            shard.add(key(number), latent(number))
        shard.commit({})
    target, copied = export(source, cache / "b")
    assert summary(copied) == (3, 0, 0)
    assert list(target.shards) == [0]
    holds_exactly(open_store(target.path), [0, 1, 2])


def test_a_copy_of_an_empty_store_is_an_empty_store(source: LatentStore, cache: Path) -> None:
    empty = create(cache / "empty", format=source.format)
    target, copied = export(empty, cache / "b")
    assert summary(copied) == (0, 0, 0)
    assert open_store(target.path).keys == ()


def test_a_name_that_is_no_label_still_becomes_a_folder(cache: Path) -> None:
    source = create(cache / "a")
    write(source, [0])
    for name in ("..what ever", "ß" * 3, "-", "x" * 120, f"-{TINY.id[:12]}"):
        moved = cache / "a" / name
        source.path.rename(moved)
        target, _ = export(open_store(moved), cache / "b")
        assert target.path.name.endswith(f"-{TINY.id[:12]}"), name
        assert len(open_store(cache / "b")) == 1
        shutil.rmtree(cache / "b")
        moved.rename(source.path)


def test_a_part_of_a_copied_shard_has_its_share_of_each_origin(tmp_path: Path) -> None:
    first = create(tmp_path / "first", shard_size=2)
    fill(first, 4)
    both = create(tmp_path / "both", shard_size=4)
    transfer.copy(first, both)
    part, _ = export(both, tmp_path / "part", keys=[key(0), key(3), key(2)])
    (copied,), (partial,) = both.records(), part.records()
    assert [(origin.rows, origin.of_rows) for origin in origins_of(copied)] == [(2, 2), (2, 2)]
    assert [(origin.rows, origin.of_rows) for origin in origins_of(partial)] == [(1.5, 2), (1.5, 2)]


@pytest.mark.parametrize(("rows", "origins"), [(0, 0), (-1, 0), (0.25, 1), (2, 1), (2.5, 1), (3, 0)])
def test_an_origin_of_no_rows_or_of_more_than_the_shard_has_is_passed_over(
    tmp_path: Path, rows: float, origins: int
) -> None:
    store = create(tmp_path)
    part = {"sha256": "0" * 64, "rows": rows, "of_rows": 4, "created": "", "facts": {}}
    with store.new_shard() as shard:
        for number in range(2):
            shard.add(key(number), latent(number))
        shard.commit({"copied_from": [part]})
    (record,) = store.records()
    assert len(origins_of(record)) == origins


def test_embeddings_come_along_in_any_type_and_a_file_that_holds_none_is_named(tmp_path: Path) -> None:
    source = create(tmp_path / "a")
    fill(source, 3)
    header = b'{"prompt":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    bfloat16 = len(header).to_bytes(8, "little") + header + b"\0\0"
    (source.path / "prompt.safetensors").write_bytes(bfloat16)
    (source.path / "prompts").mkdir()
    for name, content in (("a", bfloat16), ("b", b"no tensors"), ("c", bfloat16)):
        (source.path / "prompts" / f"{name}.safetensors").write_bytes(content)
    target, copied = export(open_store(source.path), tmp_path / "b")
    assert len(copied.damaged) == 1
    assert "b.safetensors: it is no file of embeddings" in copied.damaged[0]
    assert len(target) == 3
    kept = [target.path / "prompt.safetensors", *(target.path / "prompts").iterdir()]
    assert sorted(path.name for path in kept) == ["a.safetensors", "c.safetensors", "prompt.safetensors"]
    assert {path.read_bytes() for path in kept} == {bfloat16}


def test_a_part_takes_the_prompts_of_its_own_samples(tmp_path: Path) -> None:
    source = create(tmp_path / "a")
    fill(source, 3)
    source.record_sources([(f"{n}.png", key(n)) for n in range(3)], {key(n): f"a ball {n}" for n in range(3)})
    for n in range(3):
        name = prompt_name(f"a ball {n}")
        source.place.create(f"prompts/{name}", save({"prompt": np.full(3, n, np.float32)}))
    part, copied = export(source, tmp_path / "part", keys=[key(2), key(0)])
    assert copied.damaged == ()
    assert part.place.names("prompts") == sorted(prompt_name(f"a ball {n}") for n in (0, 2))
    assert part.prompts() == {key(0): "a ball 0", key(2): "a ball 2"}
