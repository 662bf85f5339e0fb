"""`theworld ui`: a page on loopback for whoever has its token, over a miniature run and the worldlet."""

from __future__ import annotations

import base64
import http.client
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.miniatures.image_store import make_images
from theworld.pipeline.cli.ui.command import _Answers
from theworld.pipeline.cli.ui.server import MAX_BODY, Event, Server
from theworld.pipeline.progress import Progress
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.worldlet.scenes.files import write_scenes
from theworld.train.config import TrainConfig
from theworld.train.training.train import train


class Here:
    """A server that runs, and requests to it."""

    def __init__(self, server: Server) -> None:
        self.server, self.token = server, server.token
        self.host = f"127.0.0.1:{server.server_port}"

    def get(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
        """Status, body and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=120)
        stated = {"Host": self.host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(method, path, body, {name: value for name, value in stated.items() if value})
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers

    def ask(self, image: bytes, **more: Any) -> list[Event]:
        """The events of an answer."""
        asked = {
            "image": base64.b64encode(image).decode(),
            "name": "photo.png",
            "question": "where will it land?",
            **more,
        }
        path = f"/answer?token={self.token}"
        _, lines, _ = self.get(path, "POST", json.dumps(asked | more).encode(), Content_Type="application/json")
        return [json.loads(line) for line in lines.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded models, of seconds."""
    folder = tmp_path_factory.mktemp("ui")
    write_scenes(folder, splits={"train": 4})
    config = PrecomputeConfig(images=folder / "images", cache=folder / "cache", steps=2, device="cpu", in_process=True)
    store = run_precompute(config, progress=Progress.silent()).store
    settings = {
        "store": store,
        "questions": folder / "questions.jsonl",
        "train_steps": 2,
        "batch_size": 4,
        "device": "cpu",
    }
    train(TrainConfig.model_validate({**settings, "out": folder / "run"}), progress=Progress.silent())
    make_images(folder / "photos", 1)
    return folder


@pytest.fixture(scope="module")
def here(place: Path) -> Iterator[Here]:
    answers = _Answers(place / "run", lm=None, world=None, progress=Progress.silent(), device="cpu", memory=None)
    yield from serving(Server(answers.answer, answers.facts()))


def serving(server: Server) -> Iterator[Here]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Here(server)
    server.shutdown()
    server.server_close()


def test_an_image_is_answered_without_and_with_its_future_whose_frames_come_between(here: Here, place: Path) -> None:
    scene = next((place / "images").iterdir()).read_bytes()
    before = set(Path(tempfile.gettempdir()).iterdir())
    events = here.ask(scene, choices=["left", "middle", "right"])
    kinds = [kind for event in events for kind in event if kind in ("without", "frame", "with", "error")]
    assert kinds == ["without", *["frame"] * 9, "with"], events
    for name in ("without", "with"):
        [answer] = [event[name] for event in events if name in event]
        assert answer["text"] in ("left", "middle", "right")
        assert sum(one["probability"] for one in answer["ranked"]) == pytest.approx(1)
    labels = [event["label"] for event in events if "frame" in event]
    assert labels[0] == "now"
    assert labels[-1] == "+0.67 s"
    assert all(base64.b64decode(event["frame"]).startswith(b"\xff\xd8\xff") for event in events if "frame" in event)
    assert any("never read 0 steps" in event.get("note", "") for event in events)
    assert not any("mean nothing" in event.get("note", "") for event in events)
    assert {
        new for new in set(Path(tempfile.gettempdir()).iterdir()) - before if new.name.startswith("theworld-ui")
    } == set()


def test_a_photograph_is_answered_with_the_warning_that_the_worldlet_knows_none(here: Here, place: Path) -> None:
    events = here.ask((place / "photos" / "000.png").read_bytes())
    [note] = [event["note"] for event in events if "mean nothing" in event.get("note", "")]
    assert "photo.png is none of them" in note
    assert any("with" in event for event in events)


@pytest.mark.parametrize(
    ("image", "question", "said"),
    [
        (b"no image", "where?", "photo.png"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "where?", "photo.png"),
        (None, "is it <eos> there?", "control token"),
    ],
)
def test_what_cannot_be_answered_is_a_message_and_the_next_question_is_answered(
    here: Here, place: Path, image: bytes | None, question: str, said: str
) -> None:
    scene = next((place / "images").iterdir()).read_bytes()
    *_, last = here.ask(image or scene, question=question)
    assert said in last["error"]
    assert tempfile.gettempdir() not in last["error"]
    assert any("with" in event for event in here.ask(scene))


@pytest.fixture
def idle() -> Iterator[Here]:
    """A server whose questions wait until they are let go."""
    let_go = threading.Event()

    def answer(_: Path, question: str, __: list[str]) -> Iterator[Event]:
        yield {"status": question}
        let_go.wait(60)
        yield {"with": {"text": "<b>", "ranked": []}}

    facts = {"run": "<script>alert(1)</script>", "world": "w", "horizon": "1 s", "fps": 12.0}
    for one in serving(Server(answer, facts)):
        one.let_go = let_go  # type: ignore[attr-defined]
        yield one
        let_go.set()


def test_the_page_has_a_policy_escapes_names_and_is_kept_by_nobody(idle: Here) -> None:
    status, text, headers = idle.get(f"/?token={idle.token}")
    assert status == 200
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert not any(word in text for word in ("https://", "http://"))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/?token=", {}),
        ("/?token=wrong", {}),
        ("/?token=%ff%C3%A9", {}),
        ("/?token=TOKEN", {"Host": "evil.example:80"}),
        ("/?token=TOKEN", {"Host": "127.0.0.1"}),
        ("/?token=TOKEN", {"Origin": "http://evil.example"}),
        ("/?token=TOKEN", {"Origin": "null"}),
    ],
)
def test_other_pages_other_hosts_and_other_tokens_are_refused(idle: Here, path: str, headers: dict[str, str]) -> None:
    status, text, answered = idle.get(path.replace("TOKEN", idle.token), **headers)
    assert status == 403
    assert idle.token not in text
    assert answered["Content-Type"] == "text/plain; charset=utf-8", "else a browser saves it as a file"


def test_it_listens_on_loopback_alone(idle: Here) -> None:
    assert idle.server.server_address[0] == "127.0.0.1"
    assert urlsplit(idle.server.url).hostname == "127.0.0.1"


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"{}", {}, "questions are JSON"),
        (b"{}", {"Content_Type": "text/plain"}, "questions are JSON"),
        (b"{}", {"Content_Type": "application/json"}, "image is missing"),
        (b"[[[", {"Content_Type": "application/json"}, "no question"),
        (b'{"image": "\xff", "question": "q"}', {"Content_Type": "application/json"}, "no question"),
        (b'{"image": "", "question": ""}', {"Content_Type": "application/json"}, "question"),
        (b'{"image": "", "question": "q", "more": 1}', {"Content_Type": "application/json"}, "more"),
        (b"", {"Content_Type": "application/json", "Content_Length": str(MAX_BODY + 1)}, "too large"),
        (b"", {"Content_Type": "application/json", "Content_Length": "-1"}, "too large"),
    ],
)
def test_what_is_no_question_is_refused_in_words(idle: Here, body: bytes, headers: dict[str, str], said: str) -> None:
    status, text, _ = idle.get(f"/answer?token={idle.token}", "POST", body, **headers)
    assert status == 400
    assert said in text


def test_one_question_is_computed_at_a_time_and_the_other_is_told(idle: Here) -> None:
    answers: list[list[Event]] = []
    first = threading.Thread(target=lambda: answers.append(idle.ask(b"x", question="first")))
    first.start()
    while not idle.server.computing.locked():
        pass
    [busy] = idle.ask(b"x", question="second")
    assert "another question is being answered" in busy["error"]
    idle.let_go.set()  # type: ignore[attr-defined]
    first.join(60)
    assert answers == [[{"status": "first"}, {"with": {"text": "<b>", "ranked": []}}]]
