"""The server of `theworld ui`: on loopback, for whoever has the token, one question at a time.

Another web page that the same browser shows can send requests here. So each request must name this host and port
(a rebound name does not), come from this page if it states an origin, and bring the token; what is asked is JSON, which
other pages may not send.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from ...errors import ConfigError, TheWorldError
from ...messages import list_problems, printable
from .page import page

MAX_BODY = 48 * 2**20
"""Bytes of a question with its image in base64."""
MAX_LETTERS, MAX_CHOICES = 2_000, 32
_TIMEOUT_S = 30.0
"""A client that sends or reads nothing for so long is dropped."""
_MOST_CLIENTS = 16

Event = dict[str, Any]
"""One line of an answer: `status`, `note`, `error`, `frame` with `label`, `without` or `with`."""
Answerer = Callable[[Path, str, list[str]], Iterator[Event]]
"""Answers a question about an image file, event by event."""


class _Question(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")

    image: Base64Bytes
    """The content of its file."""
    name: Annotated[str, Field(max_length=MAX_LETTERS)] = "image"
    question: Annotated[str, Field(min_length=1, max_length=MAX_LETTERS)]
    choices: Annotated[list[Annotated[str, Field(max_length=MAX_LETTERS)]], Field(max_length=MAX_CHOICES)] = []


class Server(ThreadingHTTPServer):
    """Serves one run until it is shut down."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, answer: Answerer, facts: Mapping[str, object], *, port: int = 0) -> None:
        """
        Args:
            answer: is called by one thread at a time.
            facts: of `ui_page.page`, without nonce and question_letters.
            port: 0 takes a free one.
        Raises:
            OSError: the port is taken.
        """
        self.answer, self.facts = answer, facts
        self.token = secrets.token_urlsafe(32)
        self.computing = threading.Lock()
        self._clients = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where to open the page, with the token."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Drop clients beyond the most."""
        if not self._clients.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As of the base."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server_version, sys_version = "theworld", ""
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        if urlsplit(self.path).path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
            return
        nonce = secrets.token_urlsafe(16)
        content = page(**self.server.facts, question_letters=MAX_LETTERS, nonce=nonce).encode()
        policy = (
            f"default-src 'none'; img-src data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8", {"Content-Security-Policy": policy})
        self.wfile.write(content)

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        try:
            question = self._read_question()
        except ConfigError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if not self.server.computing.acquire(blocking=False):
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, "another question is being answered; ask again when it is done")
            return
        try:
            self._begin(HTTPStatus.OK, "application/x-ndjson", {})
            self._answer(question)
        finally:
            self.server.computing.release()

    def _answer(self, question: _Question) -> None:
        name = printable(question.name)
        with TemporaryDirectory(prefix="theworld-ui-") as folder:
            file = Path(folder) / "image"
            file.write_bytes(question.image)
            try:
                for event in self.server.answer(file, question.question, list(question.choices)):
                    self._send({key: _named(value, file, name) for key, value in event.items()})
            except ConnectionError:
                raise  # the page was closed
            except TheWorldError as error:
                self._send({"error": _named(str(error), file, name)})
            except Exception as error:  # the next question may fare better
                self._send({"error": f"no answer: {type(error).__name__}: {printable(str(error))[:300]}"})

    def _read_question(self) -> _Question:
        """The question of a request.

        Raises:
            ConfigError: says what is wrong with it.
        """
        if urlsplit(self.path).path != "/answer" or self.headers.get_content_type() != "application/json":
            raise ConfigError("questions are JSON, for /answer")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 12 or int(length) > MAX_BODY:
            raise ConfigError(f"the image is too large: with its question it may have {MAX_BODY // 2**20} MiB")
        try:
            return _Question.model_validate_json(self.rfile.read(int(length)))
        except ValidationError as error:
            raise ConfigError(f"this is no question: {list_problems(error)}") from error

    def _is_allowed(self) -> bool:
        """Whether the request is of our own page; else it is refused."""
        ours = {f"{host}:{self.server.server_port}" for host in ("127.0.0.1", "localhost")}
        origin, hosts = self.headers.get("Origin"), self.headers.get_all("Host", [])
        if (
            len(hosts) != 1
            or hosts[0] not in ours
            or (origin is not None and origin not in {f"http://{h}" for h in ours})
        ):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is only for this computer")
            return False
        typed = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        if not hmac.compare_digest(typed.encode("utf-8", "replace"), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that `theworld ui` printed, with its token")
            return False
        return True

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        if self.command == "GET":  # of a browser's address line, which would save what is no text
            self._begin(status, "text/plain; charset=utf-8", {})
            self.wfile.write(f"{why}\n".encode())
            return
        self._begin(status, "application/x-ndjson", {})
        self._send({"error": why})

    def _begin(self, status: HTTPStatus, kind: str, more: Mapping[str, str]) -> None:
        """Status and headers; the body ends where the connection does."""
        self.close_connection = True
        self.send_response(status)
        always = {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "Connection": "close",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in {**always, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, event: Event) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the token stands in every address."""


def _named(value: Any, file: Path, name: str) -> Any:
    """A text that calls the image by the name that the user knows."""
    return value.replace(str(file), name) if isinstance(value, str) else value
