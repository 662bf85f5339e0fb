"""What a bucket may do on a bad day, for each command that uses one: one message at once that says what to do, and
nothing lost or half made. Reading needs no right to write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import Done, theworld
from tests.miniatures.image_store import make_images
from tests.miniatures.training import lay_out
from tests.miniatures.world_model import save_mini_world
from tests.patience import ends_within
from tests.s3_server import BUCKET, SECRET, Faults, S3Server, Stored, s3_server
from theworld.pipeline.files.places import bucket_clients

URL = f"s3://{BUCKET}/cache"
READING = ("train", "evaluate", "list", "info", "failed", "verify", "download", "export")
WRITING = ("precompute", "upload")
House = tuple[Path, S3Server, dict[str, Stored]]
ALL = (*WRITING, *READING, "doctor")
REFUSALS = {
    "401": (Faults(refusal=(401, "Unauthorized")), "refuses the credentials", "Check AWS_ACCESS_KEY_ID"),
    "bad key": (Faults(refusal=(403, "InvalidAccessKeyId")), "refuses the credentials", "Check AWS_ACCESS_KEY_ID"),
    "403": (Faults(refusal=(403, "AccessDenied")), "does not allow this", "Give these credentials the rights"),
    "no bucket": (Faults(refusal=(404, "NoSuchBucket")), "there is no bucket latents", "Make it, or correct its name"),
    "region": (Faults(refusal=(301, "PermanentRedirect")), "in another region", "Set AWS_REGION"),
    "region in the key": (Faults(refusal=(400, "AuthorizationHeaderMalformed")), "in another region", "Set AWS_REGION"),
    "clock": (Faults(refusal=(403, "RequestTimeTooSkewed")), "the clock of this machine is wrong", "Set it, by NTP"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A world, images, and a run of a store that is in the bucket; the server, and what it holds."""
    folder = tmp_path_factory.mktemp("house")
    lay_out(folder, images=26)
    save_mini_world(folder / "world")
    make_images(folder / "in", 1)
    with pytest.MonkeyPatch.context() as changed, s3_server() as server, server.environment():
        changed.setenv("XDG_CACHE_HOME", str(folder / "of-this-machine"))
        server.hold(folder / "cache", "cache")
        done = theworld(*words_of("train", folder, folder / "trained"))
        assert done.code == 0, done.err
        yield folder, server, dict(server.objects)


def words_of(command: str, house: Path, out: Path) -> list[object]:
    store = house / "cache"
    lm = ["--lm", house / "lm", "--patch", 2, "--lora-rank", 2, "--train-steps", 2, "--local-cache", house / "shards"]
    recipe = ["--steps", 1, "--size", "32x32", "--denoise-steps", 2, "--compute-dtype", "float32", "--in-process"]
    made = ["precompute", house / "in", "--world", house / "world", *recipe, "--device", "cpu"]
    commands: dict[str, list[object]] = {
        "precompute": [*made, "--cache", f"s3://{BUCKET}/new"],
        "upload": ["cache", "merge", f"s3://{BUCKET}/up", store],
        "train": ["train", URL, "--questions", store / "questions.jsonl", *lm, "--device", "cpu", "--out", out / "run"],
        "evaluate": ["evaluate", house / "trained" / "run", "--no-generate", "--device", "cpu", "--json"],
        "list": ["cache", "list", URL],
        "info": ["cache", "info", URL],
        "failed": ["cache", "failed", URL],
        "verify": ["cache", "verify", URL, "--read"],
        "download": ["cache", "merge", out / "merged", URL],
        "export": ["cache", "export", URL, out / "exported"],
        "doctor": ["doctor", URL, "--json"],
    }
    return commands[command]


def run(house: House, command: str, out: Path, faults: Faults) -> Done:
    """Run a command beside a server with faults; what the server held is as it was, and no secret is told."""
    folder, server, before = house
    server.objects, server.faults = dict(before), faults
    server.asked.clear()
    try:
        with ends_within(60):
            done = theworld(*words_of(command, folder, out))
    finally:
        server.faults = Faults()
    assert {name: server.objects.get(name) for name in before} == before, "nothing is lost"
    assert SECRET not in done.out + done.err
    assert "Traceback" not in done.err
    return done


def refused(house: House, command: str, out: Path, faults: Faults) -> str:
    """The one message of a command that was refused, and left nothing new."""
    done = run(house, command, out, faults)
    assert done.code == 2, done.err
    assert house[1].objects.keys() == house[2].keys(), "nothing is half made"
    if command == "doctor":
        [problem] = [row for row in done.json if row["state"] == "problem"]
        return f"{problem['found']}. {problem['advice']}"
    [message] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    return message


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("why", REFUSALS)
def test_a_refusal_is_one_message_that_says_what_to_do(house: House, command: str, why: str, tmp_path: Path) -> None:
    faults, said, advice = REFUSALS[why]
    message = refused(house, command, tmp_path, faults)
    assert said in message
    assert advice in message


@pytest.mark.parametrize("command", READING)
def test_reading_needs_no_right_to_write(house: House, command: str, tmp_path: Path) -> None:
    done = run(house, command, tmp_path, Faults(is_read_only=True, ignores_conditions=True))
    assert done.code == 0, done.err
    assert not [line for line in house[1].asked if line.startswith(("PUT", "COPY", "DELETE"))]


@pytest.mark.parametrize("command", [*WRITING, "doctor"])
@pytest.mark.parametrize(
    ("faults", "said", "advice"),
    [
        (Faults(is_read_only=True), "does not allow this", "rights to list, read, write and delete"),
        (Faults(ignores_conditions=True), "replaces objects that it was told to keep", "theworld cache merge"),
        (Faults(drops_metadata=True), "does not keep the metadata", "theworld cache merge"),
        (Faults(ignores_ranges=True), "answers a range with the whole object", "copy the store to a folder"),
    ],
    ids=["read only", "ignores conditions", "drops metadata", "ignores ranges"],
)
def test_who_cannot_keep_a_store_is_refused_before_anything_is_made(
    house: House,
    command: str,
    faults: Faults,
    said: str,
    advice: str,
    tmp_path: Path,
) -> None:
    message = refused(house, command, tmp_path, faults)
    assert said in message
    assert advice in message


@pytest.mark.parametrize("command", ["train", "evaluate", "verify", "download", "export"])
def test_a_listing_that_lacks_a_record_is_named_and_not_believed(house: House, command: str, tmp_path: Path) -> None:
    record = next(name for name in house[2] if name.endswith("commits/1.json"))
    message = refused(house, command, tmp_path, Faults(hidden=frozenset({record})))
    assert "its listing lacks records that are there (1, such as commits/1.json)" in message
    assert "Run the same command again" in message


@pytest.mark.parametrize("command", ["info", "export"])
def test_an_answer_that_is_cut_again_and_again_is_named(
    house: House, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_clients, "RETRIES", dict.fromkeys(("many", "few", "one"), (2, 1.0)))
    message = refused(house, command, tmp_path, Faults(cut_after=0))
    assert "does not answer as a bucket does" in message
    assert "then run the same command again" in message


def test_a_bad_hour_is_waited_out_by_an_upload(house: House, tmp_path: Path) -> None:
    done = run(house, "upload", tmp_path, Faults(lost=0.05, unavailable=0.05, conflicts=0.05))
    assert done.code == 0, done.err
    verified = theworld("cache", "verify", f"s3://{BUCKET}/up", "--deep", "--json")
    assert (verified.code, verified.json["samples"]) == (0, 26)
    assert json.loads(verified.out)["damaged"] == 0
