"""`theworld doctor` says what is so, and goes on where one look fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.doctor import checks as doctor
from theworld.pipeline.cli.doctor.checks import Row, examine
from theworld.pipeline.cli.main import app

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def rows(environment: dict[str, str]) -> dict[str, Row]:
    return {row.what: row for row in examine(environment)}


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_machine_that_runs_the_tests_has_no_problem() -> None:
    found = rows(OFFLINE)
    assert not [row for row in found.values() if row.state == "problem"]
    for what in ("theworld", "packages", "CPU", "memory", "disk, here", "sockets", "image guard"):
        assert what in found
    assert "LOP/s in float32, " in found["CPU"].found
    assert found["Hub"] == Row("Hub", "ok", "not asked: HF_HUB_OFFLINE is set")


def test_whatever_the_hub_answers_it_is_there(hub: str) -> None:
    assert rows({"HF_ENDPOINT": hub})["Hub"].state == "ok"


def test_a_hub_out_of_reach_is_a_note_and_says_what_to_do() -> None:
    found = rows({"HF_ENDPOINT": "http://127.0.0.1:1"})["Hub"]
    assert found.state == "note"
    assert "--world FOLDER" in found.advice


def test_a_token_is_said_to_be_there_and_never_shown() -> None:
    found = examine(OFFLINE | {"HF_TOKEN": "hf_secret", "RAY_ADDRESS": "10.0.0.1:6379"})
    assert Row("HF_TOKEN", "ok", "set") in found
    assert "hf_secret" not in json.dumps(doctor.to_json(found))
    assert any(row.what == "RAY_ADDRESS" and "not used" in row.found for row in found)


def test_what_is_missing_or_too_old_is_named_and_sets_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=999", "no-such-package", "torch", "other; extra == 'some'"]
    monkeypatch.setattr(doctor, "requires", lambda _: needs)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(app, ["doctor", "--json"])
    [packages] = [row for row in json.loads(done.stdout) if row["what"] == "packages"]
    assert done.exit_code == 2
    assert packages["state"] == "problem"
    assert "needs >=999" in packages["found"]
    assert "no-such-package is missing" in packages["found"]


def test_a_look_that_fails_does_not_silence_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Row]:
        raise RuntimeError("no such library")
        yield

    monkeypatch.setattr(doctor, "_device", broken)
    found = examine(OFFLINE)
    assert any(row.state == "problem" and "no such library" in row.found for row in found)
    assert any(row.what == "memory" for row in found)
