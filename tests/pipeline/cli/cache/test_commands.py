"""`theworld cache …` as a person and as a script meet it: what is printed, where, and with which exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.latents.keys import KEY_DIGITS
from theworld.pipeline.store.folder import LatentStore, load_store, open_store
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.upkeep.verify import verify

from .... import command_line
from ....command_line import Done
from ....faults.harness import Holding, finish, start
from ....miniatures.store import TINY, create, expected, fill, flip, key, write
from ....patience import eventually, patience
from ....permissions import as_another_user, contents, listing, poison, record_file, reseal

OTHER = TINY.model_copy(update={"seed": 5, "rollout_steps": 1})


@pytest.fixture
def store(cache: Path) -> LatentStore:
    """Ten samples in shards of 4, 4 and 2."""
    store = create(cache / "latents")
    fill(store, 10)
    store.record_sources((f"photos/{n}.png", key(n)) for n in range(10))
    return store


def theworld(*arguments: object) -> Done:
    """`theworld cache …` in this process."""
    return command_line.theworld("cache", *arguments)


def test_the_exit_codes_are_those_a_script_was_promised(store: LatentStore, cache: Path) -> None:
    sound = theworld("verify", store.path)
    assert (sound.code, sound.err[:22]) == (0, "verify: 3 of 3 (100 %)")
    assert "no damage" in sound.out
    flip(store.payload_path(1), 3)
    damaged = theworld("verify", "--read", store.path)
    assert damaged.code == 1
    assert "DAMAGE" in damaged.out
    wrong = theworld("verify", "--sample", "9", store.path)
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: --sample must be i/n")
    nowhere = theworld("verify", cache)
    assert (nowhere.code, nowhere.out) == (10, "")
    assert nowhere.err.startswith("error: ")
    assert "Traceback" not in damaged.err + wrong.err + nowhere.err


def test_a_second_repair_or_gc_is_told_to_wait_until_the_first_is_killed(store: LatentStore) -> None:
    from theworld.pipeline.store.upkeep.repair import repair

    flip(store.payload_path(1), 3)
    child, words = start(lambda tell: repair(store.path, apply=True, progress=Holding(tell)))
    try:
        with os.fdopen(words) as pipe:
            assert pipe.readline() == "at work\n"
            locked = theworld("repair", "--apply", store.path)
            assert (locked.code, locked.out) == (11, "")
            assert "another repair, gc, drop or compact" in locked.err
            assert theworld("gc", "--apply", store.path).code == 11
            assert theworld("gc", store.path).code == 0
            assert theworld("verify", store.path).code == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert theworld("repair", "--apply", store.path).code == 0


def test_no_command_on_stores_loads_torch_or_ray(store: LatentStore) -> None:
    where = str(store.path.parent)
    commands = [["list", "--help"], ["preview", "--help"], ["verify", "--help"]]  # first: others may load numpy
    commands += [["list", where], ["verify", "--read", where], ["repair", where], ["gc", where]]
    commands += [["info", where], ["explain", where, where]]
    commands += [["verify", "--deep", where], ["export", where, f"{where}-copy"]]  # these two ask zarr-python
    code = (
        "import sys; from theworld.pipeline.cli.main import app\n"
        f"for arguments in {commands!r}:\n"
        "    try: app(['cache', *arguments])\n"
        "    except SystemExit as end: assert not end.code, (arguments, end.code)\n"
        "    heavy = {'torch', 'ray', 'diffusers', 'transformers', 'zarr'} & set(sys.modules)\n"
        "    if '--deep' in arguments or 'export' in arguments: heavy -= {'zarr'}\n"
        "    if '--help' in arguments: heavy |= {'numpy'} & set(sys.modules)\n"
        "    assert not heavy, (arguments, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done.stderr
    assert "10 samples copied" in done.stdout


def test_list_shows_each_store_of_a_folder(store: LatentStore) -> None:
    other = create(store.path.parent, recipe=OTHER, format="webdataset")
    fill(other, 3)
    rows = theworld("list", "--json", store.path.parent).json
    assert {row["path"]: (row["recipe_id"], row["format"], row["samples"], row["bytes"]) for row in rows} == {
        str(each.path): (each.recipe.id, each.format, len(each), sum(shard.bytes for shard in each.shards.values()))
        for each in (store, other)
    }
    said = theworld("list", store.path.parent)
    assert said.code == 0
    assert sorted(line.split()[0] for line in said.out.splitlines()) == ["10", "3"]
    assert str(other.path) in said.out
    assert [row["path"] for row in theworld("list", "--json", store.path).json] == [str(store.path)]


@pytest.mark.parametrize("harm", ["manifest", "meaning", "newer", "record", "commits", "foreign"])
def test_one_bad_store_hides_no_other(store: LatentStore, harm: str) -> None:
    bad = create(store.path.parent, recipe=OTHER)
    fill(bad, 3)
    match harm:
        case "manifest":
            flip(bad.path / "theworld.json", 50)
        case "meaning":
            reseal(bad.path / "theworld.json", recipe={**OTHER.model_dump(mode="json"), "height": 17})
        case "newer":
            reseal(bad.path / "theworld.json", format=3)
        case "record":
            flip(record_file(bad, 0), 40)
        case "commits":
            (bad.path / "commits").rename(bad.path / "elsewhere")
        case _:
            (bad.path / "theworld.json").write_text("[]")
    said = theworld("list", "--json", store.path.parent)
    assert said.code == 1
    assert str(bad.path) in said.err
    assert [row["samples"] for row in said.json if row["path"] == str(store.path)] == [10]


def test_a_store_one_may_not_enter_hides_no_other(store: LatentStore) -> None:
    private = create(store.path.parent, recipe=OTHER)
    fill(private, 3)
    private.path.chmod(0o700)

    def look() -> None:
        said = theworld("list", "--json", store.path.parent)
        assert said.code == 1
        assert str(private.path) in said.err
        assert [row["path"] for row in said.json] == [str(store.path)]

    as_another_user(look)


def test_a_private_folder_that_is_no_store_is_in_nobodys_way(store: LatentStore) -> None:
    (store.path.parent / "lost+found").mkdir(mode=0o700)  # as at the root of a disk

    def look() -> None:
        for command in ("list", "info", "verify"):
            assert theworld(command, store.path.parent).code == 0, command

    as_another_user(look)


@pytest.mark.parametrize("part", ["commits", "sources", "latents/c"])
def test_a_part_one_may_not_read_is_an_error_in_words(store: LatentStore, part: str) -> None:
    (store.path / part).chmod(0)

    def look() -> None:
        for command in ("list", "info", "verify", "gc"):
            done = theworld(command, store.path)  # which passes on what is no error of ours
            assert done.code in (0, 1, 2)
            assert "DAMAGE" not in done.out

    as_another_user(look)


def test_a_store_without_a_folder_of_records_is_an_error_in_words(store: LatentStore) -> None:
    (store.path / "commits").rename(store.path / "elsewhere")
    for spoil in (lambda: None, lambda: (store.path / "commits").write_text("")):
        spoil()
        for command in ("info", "verify", "repair", "gc", "list"):
            done = theworld(command, store.path)
            assert done.code in (1, 2), command
            assert "commits" in done.err + done.out


def test_no_store_is_not_the_same_as_no_folder(cache: Path) -> None:
    empty = theworld("list", cache)
    assert (empty.code, empty.out) == (0, "")
    assert "holds no store" in empty.err
    assert theworld("list", "--json", cache).json == []
    absent = theworld("list", cache / "absent")
    assert absent.code == 10
    assert "theworld precompute" in absent.err


@pytest.mark.parametrize("command", ["info", "verify", "repair", "gc", "explain", "export"])
def test_every_command_takes_a_folder_of_one_store_and_asks_where_there_are_several(
    store: LatentStore, cache: Path, command: str
) -> None:
    more = {"explain": [store.path], "export": [cache / "copy"]}.get(command, [])
    assert theworld(command, store.path.parent, *more).code == 0
    other = create(store.path.parent, recipe=OTHER)
    asked = theworld(command, store.path.parent, *more)
    assert asked.code == 2
    assert str(store.path) in asked.err
    assert str(other.path) in asked.err
    assert "theworld train" not in asked.err, "that is not what was asked"
    assert theworld(command, cache / "nowhere", *more).code == 10


def test_info_prints_the_numbers_and_json_the_same(store: LatentStore) -> None:
    said = theworld("info", store.path)
    assert said.code == 0
    for part in (store.recipe.id, "10 samples (3, 3, 2, 4) in 3 shards", "10 sources", "motion"):
        assert part in said.out
    found = theworld("info", "--json", "--samples", 4, store.path).json
    assert (found["samples"], found["looked_into"], len(found["channel_std"])) == (10, 4, 3)
    latents = expected(store, range(10)).astype(np.float64)
    all_of_it = theworld("info", "--json", store.path).json
    np.testing.assert_allclose(all_of_it["channel_mean"], latents.mean(axis=(0, 2, 3, 4)), rtol=0, atol=1e-4)


def test_a_strangers_store_cannot_command_the_terminal(store: LatentStore) -> None:
    reseal(record_file(store, 0), facts={"host": "\x1b[2J\nevil \u202e", "world": {"name": "\x9b", "fps": 4}})
    said = theworld("info", store.path)
    assert said.code == 0
    assert r"\x1b[2J\nevil \u202e" in said.out
    assert all(line.isprintable() for line in said.out.splitlines())
    store.record_failure(Failure(source="\x1b[2J", key=None, reason="\x1b[2K", message="\x1b[2L", attempts=1))
    zarr = store.path / "latents" / "zarr.json"
    zarr.write_text(zarr.read_text().replace('"float16"', r'"\u001b[2O"'))
    for command in ("failed", "verify", "info"):
        said = theworld(command, store.path)
        assert r"\x1b[2" in said.out + said.err
        assert "\x1b" not in said.out + said.err, command


def test_a_folder_whose_name_is_not_utf_8_is_no_obstacle(store: LatentStore, cache: Path) -> None:
    odd = os.fsencode(cache) + b"/caf\xe9"
    store.path.parent.rename(os.fsdecode(odd))
    escaped = rb"caf\udce9"
    for command, told in (("list", odd), ("gc", odd), ("verify", escaped), ("info", escaped)):
        done = theworld(command, odd)
        assert (done.code, b"Traceback" in done.stderr) == (0, False), command
        assert told in done.stdout


def test_info_of_a_damaged_store_names_the_damage(store: LatentStore) -> None:
    flip(store.payload_path(0), 3)
    said = theworld("info", store.path)
    assert (said.code, said.out) == (1, "")
    assert "cache repair" in said.err


def test_verify_looks_as_deep_as_it_is_told(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    poison(store, 0)
    codes = {level: theworld("verify", *level.split(), store.path) for level in ("", "--read", "--deep")}
    assert {level: done.code for level, done in codes.items()} == {"": 0, "--read": 1, "--deep": 1}
    assert [done.out.count("DAMAGE") for done in codes.values()] == [0, 1, 2]
    assert theworld("verify", "--read", "--deep", "--json", store.path).json["level"] == "deep"
    parts = [theworld("verify", "--deep", "--sample", f"{i}/3", store.path).code for i in (1, 2, 3)]
    assert parts == [1, 1, 0]


@pytest.mark.parametrize("sample", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", "1.0/3"])
def test_a_sample_that_is_none_is_wrong_use(store: LatentStore, sample: str) -> None:
    done = theworld("verify", f"--sample={sample}", store.path)
    assert (done.code, done.out) == (2, "")


def test_the_command_that_verify_names_heals(store: LatentStore) -> None:
    for level, number in (("--read", 5), ("--deep", 1)):
        poison(store, number)
        if level == "--read":
            flip(store.payload_path(1), 3)
        advice = theworld("verify", level, store.path).out.split("`")[1].split()
        assert advice[:2] == ["theworld", "cache"]
        assert theworld(*advice[2:]).code == 0
        assert theworld("verify", level, store.path).code == 0


def test_repair_says_what_it_would_do_and_then_what_it_did(store: LatentStore) -> None:
    sound = theworld("repair", store.path)
    assert sound.code == 0
    assert "no damage" in sound.out
    flip(store.payload_path(1), 3)
    before = listing(store.path)
    planned = theworld("repair", store.path)
    assert planned.code == 1
    assert listing(store.path) == before
    moved = [str(record_file(store, 1)), str(store.payload_path(1))]
    assert [line for line in planned.out.splitlines() if line.startswith("would move")] == [
        f"would move {file} to {store.path / 'lost+found'}" for file in moved
    ]
    assert "--apply" in planned.out
    assert theworld("repair", "--json", store.path).json["moved"] == moved
    done = theworld("repair", "--apply", store.path)
    assert done.code == 0
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("moved")] == moved
    assert "theworld precompute" in done.out
    assert theworld("verify", store.path).code == 0
    assert len(load_store(store.path)) == 6


def test_a_manifest_beyond_repair_is_exit_code_one_with_and_without_apply(store: LatentStore) -> None:
    flip(store.path / "theworld.json", 60)
    before = listing(store.path)
    for arguments in (["verify"], ["repair"], ["repair", "--apply"]):
        done = theworld(*arguments, store.path)
        assert done.code == 1
        assert "copy of the store" in done.out + done.err
        assert "--apply moves" not in done.out, "there is nothing it could move"
    assert listing(store.path) == before


def test_gc_says_what_it_would_delete_and_never_goes_under_an_hour(store: LatentStore) -> None:
    torn = store.path / "tmp" / "1-dead"
    torn.write_bytes(b"torn")
    said = theworld("gc", store.path)
    assert said.code == 0
    assert "0 files" in said.out
    assert "1 younger than 14d" in said.out
    assert theworld("gc", "--apply", "--json", "--grace", "1h", store.path).json["young"] == 1
    for grace in ("0d", "0h", "59m", "1", "-3d", "1.5d", ""):
        done = theworld("gc", "--apply", f"--grace={grace}", store.path)
        assert (done.code, done.out) == (2, ""), grace
    assert torn.exists()


def test_gc_deletes_what_has_been_there_for_long(store: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from theworld.pipeline.cli.cache import upkeep

    torn = store.path / "tmp" / "1-dead"
    torn.write_bytes(b"torn")
    monkeypatch.setattr(upkeep, "SMALLEST_GRACE_S", 0.0)
    later = store.path / "tmp" / "later"  # a file system's clock ticks every few milliseconds
    assert eventually(lambda: later.write_bytes(b"") == 0 and later.stat().st_mtime > torn.stat().st_ctime)
    later.unlink()
    planned = theworld("gc", "--grace", "0h", store.path)
    assert f"would delete {torn}" in planned.out
    assert "--apply deletes" in planned.out
    assert torn.exists()
    assert f"deleted {torn}" in theworld("gc", "--apply", "--grace", "0h", store.path).out
    assert not torn.exists()
    assert verify(store.path, level="deep").findings == ()


def test_gc_refuses_while_a_record_is_damaged(store: LatentStore) -> None:
    flip(record_file(store, 0), 40)
    for arguments in ([], ["--apply"]):
        done = theworld("gc", *arguments, store.path)
        assert (done.code, done.out) == (1, "")
        assert "nothing is deleted" in done.err


def test_explain_names_exactly_the_fields_in_which_two_stores_differ(store: LatentStore, cache: Path) -> None:
    other = create(cache / "other", recipe=OTHER)
    said = theworld("explain", "--json", store.path, other.path)
    assert said.code == 0
    assert said.json == {
        "a": TINY.id,
        "b": OTHER.id,
        "same": False,
        "fields": {"rollout_steps": {"a": 2, "b": 1}, "seed": {"a": 0, "b": 5}},
    }
    lines = theworld("explain", store.path, other.path).out.splitlines()
    assert lines[1:] == ["  rollout_steps: 2 / 1", "  seed: 0 / 5"]
    same = theworld("explain", store.path, create(cache / "same", format="webdataset").path)
    assert "the same recipe" in same.out


def test_explain_takes_a_store_or_flags_but_not_both(store: LatentStore) -> None:
    done = theworld("explain", store.path, store.path, "--seed", 3)
    assert (done.code, done.out) == (2, "")


def test_explain_compares_a_store_with_precomputes_flags(cache: Path, tmp_path: Path) -> None:
    from theworld.precompute.job.config import PrecomputeConfig
    from theworld.precompute.job.planning.recipe import make_recipe
    from theworld.precompute.worlds.source import resolve_world

    world = resolve_world(None)
    recipe = make_recipe(PrecomputeConfig(steps=3, seed=7, dtype="bfloat16"), world)
    store = create(cache, recipe=recipe, spec=world.latent_spec())
    flags = ["--steps", 3, "--seed", 7, "--dtype", "bfloat16"]
    assert theworld("explain", "--json", store.path, *flags).json["same"] is True
    found = theworld("explain", "--json", store.path, *flags[:-2]).json["fields"]
    assert found == {"dtype": {"a": "bfloat16", "b": "float16"}}
    config = tmp_path / "c.toml"
    config.write_text("[precompute]\nsteps = 3\nseed = 8\nstride = 2\ndtype = 'bfloat16'\nworkers = 7\n")
    found = theworld("explain", "--json", store.path, "--config", config, "--seed", 7).json["fields"]
    assert found == {"stride": {"a": 1, "b": 2}}
    assert theworld("explain", store.path, "--steps", 9999).code == 2


def test_every_flag_that_shapes_a_latent_is_one_of_explains() -> None:
    told = theworld("explain", "--help").out
    flags = {name.replace("_", "-") for name in TINY.model_dump()} - {"kind", "height", "width", "fit", "engine"}
    # fixed, or said by --steps, --size, --prompt-field and --chunk-context
    flags -= {"image-rules", "rollout-steps", "fps", "draw", "prompts", "chunk-frames", "hidden-projection"}
    assert [flag for flag in sorted({*flags, "steps", "size", "prompt-field"}) if f"--{flag}" not in told] == []


def test_export_converts_and_reports(store: LatentStore, cache: Path) -> None:
    done = theworld("export", store.path, cache / "tars", "--format", "webdataset", "--shard-size", 3)
    assert done.code == 0
    tars = open_store(cache / "tars")
    assert (tars.format, tars.shard_size, tars.recipe.id) == ("webdataset", 3, TINY.id)
    assert tars.read(store.keys).tobytes() == store.read(store.keys).tobytes()
    assert "10 samples copied" in done.out
    again = theworld("export", store.path, cache / "tars", "--format", "webdataset", "--json").json
    assert [(row["copied"], row["present"]) for row in again["sources"]] == [(0, 10)]
    assert again["target"] == str(tars.path)
    refused = theworld("export", store.path, cache / "tars", "--format", "zarr")
    assert refused.code == 2
    assert theworld("export", store.path, cache / "x", "--format", "tar").code == 2
    assert theworld("export", store.path, store.path.parent).code == 2
    assert not (cache / "x").exists()


def test_export_of_a_part_by_keys_and_by_name(store: LatentStore, cache: Path) -> None:
    keys = cache / "keys.txt"
    keys.write_text("".join(f"{key(n)}\n" for n in (9, 3, 5)))
    assert theworld("export", store.path, cache / "a", "--keys", keys).code == 0
    assert open_store(cache / "a").keys == (key(9), key(3), key(5))
    assert theworld("export", store.path, cache / "b", "--match", r"/[34]\.png$").code == 0
    assert open_store(cache / "b").keys == (key(3), key(4))
    assert theworld("export", store.path, cache / "c", "--keys", keys, "--match", r"/[34]\.png$").code == 0
    assert open_store(cache / "c").keys == (key(3),)
    for part in (["--keys", keys, "--match", "/1.png"], ["--match", "nothing"], ["--keys", cache / "absent"]):
        assert theworld("export", store.path, cache / "d", *part).code == 2
    keys.write_text("")
    assert theworld("export", store.path, cache / "d", "--keys", keys).code == 2
    keys.write_text("f" * KEY_DIGITS)
    assert theworld("export", store.path, cache / "d", "--keys", keys).code == 2
    assert not (cache / "d").exists()


@pytest.mark.parametrize("what", ["payload", "record", "numbers", "log"])
def test_export_and_merge_of_a_damaged_store_copy_the_rest_and_say_so(
    store: LatentStore, cache: Path, what: str
) -> None:
    match what:
        case "payload":
            flip(store.payload_path(1), 3)
        case "record":
            flip(record_file(store, 2), 40)
        case "numbers":
            poison(store, 5)
        case _:
            flip(next((store.path / "sources").iterdir()), 3)
    whole = {"payload": 9, "record": 8, "numbers": 9, "log": 10}[what]
    for arguments in (["export", store.path, cache / "a"], ["merge", cache / "b", store.path]):
        done = theworld(*arguments)
        assert done.code == 1
        assert done.err.count("DAMAGE") == 1
        assert f"{whole} samples copied" in done.out
        copy = open_store(next(path for path in arguments[1:] if path != store.path))
        assert len(copy) == whole
        assert copy.read(copy.keys).tobytes() == store.read(copy.keys).tobytes() if what != "numbers" else True
        again = theworld(*arguments, "--json")
        assert again.code == 1
        assert len(again.json["damaged"]) == 1
        assert [(row["copied"], row["present"]) for row in again.json["sources"]] == [(0, whole)]


def test_merge_brings_stores_together_and_can_be_repeated(store: LatentStore, cache: Path) -> None:
    more = create(cache / "more", format="webdataset", shard_size=3)
    write(more, [9, 10, 11])
    done = theworld("merge", cache / "all", store.path, cache / "more")
    assert done.code == 0
    assert sorted(open_store(cache / "all").keys) == [key(n) for n in range(12)]
    before = contents(cache / "all")
    again = theworld("merge", "--json", cache / "all", store.path, more.path).json
    assert [(row["copied"], row["present"]) for row in again["sources"]] == [(0, 10), (0, 3)]
    assert contents(cache / "all") == before
    assert theworld("merge", store.path, more.path).code == 0
    assert len(open_store(store.path)) == 12


def test_merge_of_other_recipes_names_the_field_and_writes_nothing(store: LatentStore, cache: Path) -> None:
    other = create(cache / "other", recipe=OTHER)
    before = listing(cache)
    done = theworld("merge", cache / "all", store.path, other.path)
    assert (done.code, done.out) == (2, "")
    assert "seed: " in done.err
    assert listing(cache) == before
    assert theworld("merge", cache / "all").code == 2


def test_a_folder_one_may_not_write_to_is_refused(store: LatentStore, cache: Path) -> None:
    flip(store.payload_path(1), 3)

    def attempt() -> None:
        for arguments in (
            ["repair", "--apply", store.path],
            ["gc", "--apply", store.path],
            ["export", store.path, cache / "mine"],
            ["merge", store.path, store.path],
        ):
            done = theworld(*arguments)
            assert done.code == 2, arguments
            assert "Permission denied" in done.err
        codes = {name: theworld(name, store.path).code for name in ("list", "verify", "repair", "gc")}
        assert codes == {"list": 0, "verify": 0, "repair": 1, "gc": 0}

    before = listing(cache)
    as_another_user(attempt)
    assert listing(cache) == before


def test_results_go_to_stdout_and_progress_to_stderr(store: LatentStore, cache: Path) -> None:
    for arguments in (["verify", "--read", "--json", store.path], ["export", "--json", store.path, cache / "copy"]):
        done = theworld(*arguments)
        assert isinstance(done.json, dict)
        assert " of " in done.err


def test_a_copy_that_is_killed_goes_on(store: LatentStore, cache: Path) -> None:
    from theworld.pipeline.store.upkeep.transfer import export

    child, words = start(lambda tell: export(store, cache / "copy", shard_size=1, progress=Holding(tell)))
    with os.fdopen(os.dup(words)) as pipe:
        assert pipe.readline() == "at work\n"
    finish(child, words, kill=True)
    done = theworld("export", store.path, cache / "copy", "--json").json
    assert [(row["copied"], row["present"]) for row in done["sources"]] == [(10, 0)]
