"""A real HTTP server on loopback that speaks the chat protocol, and misbehaves where it is told to."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

SENTENCE = "the left lung shows a dark round spot with a thin bright border next to clear normal tissue and bone"
WORDS = SENTENCE.split()
Fault = Callable[["Handler"], None]


def chain(body: dict[str, Any]) -> str:
    """Reasoning and a letter that follow from what is asked and the seed."""
    told = hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).digest()
    words = " ".join(WORDS[byte % len(WORDS)] for byte in told[:16])
    return f"<think>{words}</think><answer>{'ABCD'[told[20] % 4]}</answer>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.close_connection = True
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((time.monotonic(), self.path, dict(self.headers), self.body))
        fault = self.server.fault(number, self.body)
        (fault or (lambda handler: handler.answer(chain(handler.body))))(self)

    def answer(self, text: str | None, reason: str = "stop", **message: Any) -> None:
        choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
        self.reply(200, json.dumps({"choices": [choice]}).encode())

    def reply(self, status: int, raw: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw) if length is None else length))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        return


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[tuple[float, str, dict[str, str], dict[str, Any]]] = []
        self.fault: Callable[[int, dict[str, Any]], Fault | None] = lambda number, body: None
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def first(self, *faults: Fault) -> None:
        """The first requests meet these, the others none."""
        self.fault = lambda number, body: faults[number] if number < len(faults) else None

    def handle_error(self, *_: Any) -> None:  # clients that hang up are part of the game
        return


def status(code: int, told: Any = "out of order", **headers: str) -> Fault:
    return lambda handler: handler.reply(code, json.dumps({"error": {"message": told}}).encode(), **headers)


def raw(text: bytes) -> Fault:
    return lambda handler: handler.reply(200, text)


def hang(handler: Handler) -> None:
    handler.server.ended.wait(10)


def drip(handler: Handler) -> None:
    handler.reply(200, b"", length=1000)
    for _ in range(100):
        if handler.server.ended.wait(0.05):
            return
        handler.wfile.write(b" ")
        handler.wfile.flush()


def disconnect(handler: Handler) -> None:
    return


def half_a_body(handler: Handler) -> None:
    handler.reply(200, b'{"choices": [', length=500)


def pictures_of(body: dict[str, Any]) -> list[Image.Image]:
    parts = [part for turn in body["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
    uris = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) for uri in uris]


@contextmanager
def running() -> Iterator[FaultyServer]:
    server = FaultyServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
