"""`theworld doctor s3://…`: what it says of a bucket, and what it never says."""

import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.doctor.bucket import examine_bucket
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError

from ....s3_server import BUCKET, KEY_ID, SECRET, s3_server

URL = f"s3://{BUCKET}/latents"


def test_a_bucket_that_can_keep_a_store_is_timed_and_left_as_it_was() -> None:
    with s3_server() as server, server.environment():
        rows = examine_bucket(URL)
    assert [row.what for row in rows] == ["bucket", "credentials", "reading", "exactly once", "PUT", "GET", "LIST"]
    assert {row.state for row in rows} == {"ok"}
    assert server.objects == {}
    said = " ".join(f"{row.found} {row.advice}" for row in rows)
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert KEY_ID not in said
    assert SECRET not in said


def test_a_bucket_that_cannot_is_a_problem_with_advice() -> None:
    with s3_server() as server, server.environment():
        server.faults.ignores_conditions = True
        problem = examine_bucket(URL)[-1]
        assert (problem.state, problem.what) == ("problem", "exactly once")
        assert "replaces objects" in problem.found
        assert "theworld cache merge" in problem.advice
        assert CliRunner().invoke(app, ["doctor", URL, "--json"]).exit_code == 2


def test_who_may_only_read_is_told_that_this_is_enough_to_read() -> None:
    with s3_server() as server, server.environment():
        server.faults.is_read_only = True
        *_, reading, writing = examine_bucket(URL)
    assert (reading.what, reading.state) == ("reading", "ok")
    assert "enough to train, evaluate and copy" in reading.found
    assert (writing.what, writing.state) == ("exactly once", "problem")
    assert "rights to list, read, write and delete" in writing.advice


def test_a_folder_is_no_bucket() -> None:
    with pytest.raises(ConfigError, match="s3://bucket/latents"):
        examine_bucket("/a/folder")
