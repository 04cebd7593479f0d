"""One request against a server that fails in every way it can."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from synth.faulty_server import FaultyServer, disconnect, drip, half_a_body, hang, raw, status

from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.synth.chains import Chain
from grpo_fast.synth.client import Abandoned, Client, Pace, Refused, ServerSettings

KEY = "sk-test-0123456789abcdefABCDEF"
BODY = {"messages": [{"role": "user", "content": "Which? A) CT, B) MRI"}], "seed": 1}


def client(server: FaultyServer, **settings: Any) -> Client:
    given = {"url": server.url, "model": "m", "retries": 3, "backoff": 0.01, "timeout": 5.0, **settings}
    return Client(ServerSettings(**given), threading.Event())


@pytest.mark.parametrize(
    "fault",
    [
        status(500), status(503), status(429), status(408), disconnect, half_a_body, raw(b"<html>busy</html>"),
        raw(b"{}"), raw(b'{"choices": []}'), raw(b'{"choices": ["x"]}'), raw(b'{"choices": [{"message": "x"}]}'),
        raw(b'{"error": {"message": "overloaded"}}'), raw(b"\xff\xfe"), raw(b""),
    ],
)  # fmt: skip
def test_what_passes_is_tried_again(server: FaultyServer, fault: Any) -> None:
    server.first(fault, fault)
    assert client(server).chat(BODY).text.endswith("</answer>")
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [hang, drip])
def test_no_answer_in_time_is_tried_again(server: FaultyServer, fault: Any) -> None:
    server.first(fault)
    started = time.monotonic()
    assert client(server, timeout=0.3).chat(BODY).finished
    assert 0.3 <= time.monotonic() - started < 3 and len(server.requests) == 2


@pytest.mark.parametrize("after", [None, "0", "0.01", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_retries_come_ever_later_and_end(server: FaultyServer, after: str | None) -> None:
    told = {} if after is None else {"Retry_After": after}
    server.first(*[status(503, "no capacity left", **told)] * 9)
    with pytest.raises(RunFailed, match="failed 4 times, at last with: HTTP 503: no capacity left"):
        client(server, backoff=0.1).chat(BODY)
    times = [at for at, *_ in server.requests]
    gaps = [b - a for a, b in pairwise(times)]
    assert len(gaps) == 3 and all(0.05 * 2**n <= gap <= 0.1 * 2**n + 0.3 for n, gap in enumerate(gaps))


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_holds_every_request(server: FaultyServer, dated: bool) -> None:
    def later(handler: Any) -> None:  # a date has whole seconds
        wait = email.utils.formatdate(time.time() + 1.9, usegmt=True) if dated else "0.6"
        status(429, "slow down", Retry_After=wait)(handler)

    server.first(later)
    one = client(server)
    first = threading.Thread(target=one.chat, args=(BODY,))
    first.start()
    while not server.requests:
        time.sleep(0.01)
    time.sleep(0.15)
    one.chat(BODY)
    first.join()
    refused, *others = (at for at, *_ in server.requests)
    assert len(others) == 2 and all(at - refused > (0.8 if dated else 0.55) for at in others)


def test_a_wait_that_is_too_long_ends_the_run(server: FaultyServer) -> None:
    server.first(status(429, Retry_After="86400"))
    with pytest.raises(RunFailed, match="asks to wait 86400 s"):
        client(server).chat(BODY)


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (status(401, f"Incorrect API key: {KEY}"), "--key-env"),
        (status(403), "may not use this model"),
        (status(404, "no such model"), "--server-model 'm'"),
        (status(402), "trying again cannot help"),
        (status(501), "trying again cannot help"),
        (status(429, {"code": "insufficient_quota"}), "insufficient_quota"),
    ],
)
def test_what_cannot_pass_ends_the_run_at_once(server: FaultyServer, fault: Any, word: str) -> None:
    server.first(fault)
    with pytest.raises(RunFailed, match=word) as raised:
        client(server, key=KEY).chat(BODY)
    assert len(server.requests) == 1 and KEY not in str(raised.value)
    assert raised.value.__context__ is None or raised.value.__suppress_context__


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_question_is_no_end(server: FaultyServer, code: int) -> None:
    server.first(status(code, "the picture is too large"))
    with pytest.raises(Refused, match=f"HTTP {code}: the picture is too large"):
        client(server).chat(BODY)
    assert len(server.requests) == 1


def test_the_key_follows_no_redirect(server: FaultyServer) -> None:
    server.first(status(307, Location=f"{server.url}/elsewhere"))
    with pytest.raises(RunFailed, match=r"sends requests on to http://127.*/elsewhere: name that address"):
        client(server, key=KEY).chat(BODY)
    (request,) = server.requests
    assert request[2]["Authorization"] == f"Bearer {KEY}"


def test_a_key_that_comes_back_is_taken_out(server: FaultyServer) -> None:
    server.first(lambda handler: handler.answer(f"<think>your key is {KEY}</think>"))
    assert client(server, key=KEY).chat(BODY).text == "<think>your key is ***</think>"
    server.requests.clear()
    server.first(*[status(500, f"bad header Bearer {KEY}")] * 2)
    with pytest.raises(RunFailed) as raised:
        client(server, key=KEY, retries=1).chat(BODY)
    assert KEY not in str(raised.value) and "***" in str(raised.value)


def test_no_key_is_sent_unless_named(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    client(server).chat(BODY)
    assert "Authorization" not in server.requests[0][2]


def test_the_request(server: FaultyServer) -> None:
    client(server, extra={"top_k": 5, "seed": None}).chat(BODY)
    client(server, url=server.url + "/v1/").chat(BODY)
    client(server, url=server.url + "/api/v3/chat/completions").chat(BODY)
    paths = [path for _, path, _, _ in server.requests]
    assert paths == ["/v1/chat/completions", "/v1/chat/completions", "/api/v3/chat/completions"]
    assert server.requests[0][3] == {"messages": BODY["messages"], "model": "m", "top_k": 5}


@pytest.mark.parametrize(
    ("message", "reason", "chain"),
    [
        ({"content": "x"}, "length", Chain("x", False)),
        ({"content": "x"}, "content_filter", Chain("x", False)),
        ({"content": None}, "stop", Chain("", True)),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "stop", Chain("ab", True)),
        ({"content": "<answer>B</answer>", "reasoning_content": "so\n"}, "stop",
         Chain("<think>so</think><answer>B</answer>", True)),
        ({"content": "<think>own</think>B", "reasoning": "so"}, "stop", Chain("<think>own</think>B", True)),
    ],
)  # fmt: skip
def test_answers(server: FaultyServer, message: dict[str, Any], reason: str, chain: Chain) -> None:
    told = {"choices": [{"message": message, "finish_reason": reason}]}
    server.first(raw(json.dumps(told).encode()))
    assert client(server).chat(BODY) == chain


def test_nobody_there() -> None:
    with pytest.raises(RunFailed, match=r"cannot be reached.*is it running"):
        Client(ServerSettings(url="http://127.0.0.1:1", model="m"), threading.Event()).chat(BODY)


def test_the_rate_holds_over_threads() -> None:
    pace, begun = Pace(60 / 0.05, threading.Event()), []

    def work() -> None:
        for _ in range(4):
            pace.wait()
            begun.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begun.sort()
    assert len(begun) == 12
    assert all(begun[n + 4] - begun[n] >= 0.19 for n in range(8))


def test_a_wait_ends_with_the_run() -> None:
    stopped = threading.Event()
    pace = Pace(1, stopped)
    pace.wait()
    threading.Timer(0.1, stopped.set).start()
    with pytest.raises(Abandoned):
        pace.wait()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"url": "localhost:8000"}, "wants an address"),
        ({"url": "http://localhost:99999"}, "wants an address"),
        ({"url": f"http://me:{KEY}@localhost"}, "no user, password"),
        ({"url": f"http://localhost/v1?key={KEY}"}, "no user, password"),
        ({"key": "a\nb"}, "no HTTP header"),
        ({"key": KEY, "extra": {"api_key": KEY}}, "would be written down"),
        ({"timeout": 0}, "--timeout"),
        ({"concurrency": 0}, "--concurrency"),
    ],
)
def test_settings_are_checked_without_telling_the_key(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(BadSettings, match=word) as raised:
        ServerSettings(**{"url": "http://localhost:8000", "model": "m", **wrong})
    assert KEY not in str(raised.value)
    assert KEY not in repr(ServerSettings(url="http://localhost", model="m", key=KEY))
