"""One chat completion from an OpenAI-compatible server, whatever goes wrong on the way.

What may pass (429, 5xx, a lost connection, an answer that is none) is tried again, later each time and never before the
server's Retry-After. What cannot pass stops the run at once. The key is sent to the server that was named and to no
other, redirects included, and is taken out of every text that comes back.
"""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any
from urllib.parse import SplitResult, urlsplit

from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.synth.chains import Chain
from grpo_fast.train.scrub import GONE, scrubbed_text

COMPLETIONS = "/chat/completions"
LONGEST_WAIT = 600.0  # seconds that a Retry-After may ask for
LONGEST_BACKOFF = 60.0
LARGEST_ANSWER = 32 << 20  # bytes
SAY_EVERY = 10.0  # seconds
TRY_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)}) - {501, 505}
OF_THE_QUESTION = frozenset({400, 413, 422})  # may be about what was asked; others are about the settings
SPENT = ("insufficient_quota", "billing_hard_limit_reached")


class Refused(Exception):
    """The server will not answer this question."""


class Abandoned(Exception):
    """The run has ended meanwhile."""


class _Passing(Exception):
    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds, as the server says


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    url: str  # up to /v1, or the whole address
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0  # seconds for an answer
    retries: int = 6
    backoff: float = 1.0  # seconds before the first retry, doubled each time
    rate: float = 0.0  # requests a minute; 0: no limit
    concurrency: int = 8  # requests at a time
    extra: Mapping[str, Any] = field(default_factory=dict)  # of the request's body; null takes a field out

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_good_port(parts):
            raise BadSettings(f"--server wants an address like http://localhost:8000, got {scrubbed_text(self.url)!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BadSettings("--server takes no user, password, query or fragment; a key goes through --key-env")
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise BadSettings("the key in the environment holds characters that no HTTP header can")
        if self.key and self.key in json.dumps([self.url, self.model, dict(self.extra)]):
            raise BadSettings("the key stands in another setting, which would be written down: take it out there")
        if self.timeout <= 0 or self.retries < 0 or self.rate < 0 or self.concurrency < 1:
            raise BadSettings(
                "--timeout must be above 0, --retries and --rate at least 0, --concurrency at least 1; got "
                f"{self.timeout}, {self.retries}, {self.rate} and {self.concurrency}"
            )

    @property
    def address(self) -> str:
        base = self.url.rstrip("/").removesuffix(COMPLETIONS)
        return (base if urlsplit(base).path.strip("/") else f"{base}/v1") + COMPLETIONS

    @property
    def on_loopback(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def _has_good_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


class Pace:
    """Requests begin at most `rate` a minute, over all threads, and none before a time that the server named."""

    def __init__(self, rate: float, stopped: Event) -> None:
        self._interval = 60.0 / rate if rate else 0.0
        self._stopped = stopped
        self._lock = Lock()
        self._next = 0.0

    def wait(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + self._interval
                    return
                left = self._next - now
            self.sleep(left)

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Abandoned


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # urllib would send the key on
        return None


class Client:
    """`say` hears of retries, at most now and then."""

    def __init__(
        self, settings: ServerSettings, stopped: Event, say: Callable[[str], None] = lambda word: None
    ) -> None:
        self.settings = settings
        self.pace = Pace(settings.rate, stopped)
        self.answered = False
        self._say = say
        self._said = -SAY_EVERY
        proxies = [urllib.request.ProxyHandler({})] if settings.on_loopback else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def chat(self, body: Mapping[str, Any]) -> Chain:
        told = {**body, "model": self.settings.model, **self.settings.extra}
        raw = json.dumps({name: value for name, value in told.items() if value is not None}).encode()
        for number in range(self.settings.retries + 1):
            self.pace.wait()
            try:
                chain = self._once(raw)
            except _Passing as error:
                self._wait(error, number)
            else:
                self.answered = True
                return chain
        raise AssertionError("unreachable")

    def _wait(self, error: _Passing, number: int) -> None:
        left = self.settings.retries - number
        if left == 0:
            raise RunFailed(f"{self._who()} failed {number + 1} times, at last with: {error}") from None
        if error.wait is not None and error.wait > LONGEST_WAIT:
            raise RunFailed(f"{self._who()} asks to wait {error.wait:.0f} s: {error}") from None
        now = time.monotonic()
        if now - self._said > SAY_EVERY:
            self._said = now
            self._say(f"{self._who()}: {error}; trying again, {left} more times")
        if error.wait is not None:
            self.pace.hold(error.wait)
        self.pace.sleep(min(LONGEST_BACKOFF, self.settings.backoff * 2**number) * random.uniform(0.5, 1.0))

    def _once(self, raw: bytes) -> Chain:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "grpo-fast"}
        if self.settings.key:
            headers["Authorization"] = f"Bearer {self.settings.key}"
        request = urllib.request.Request(self.settings.address, raw, headers, method="POST")
        ends = time.monotonic() + self.settings.timeout
        try:
            with self._opener.open(request, timeout=self.settings.timeout) as response:
                return self._chain(_read(response, ends))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, ends) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from None

    def _chain(self, raw: bytes) -> Chain:
        try:
            choice = json.loads(raw)["choices"][0]
            text = _text(choice["message"])
            finished = choice.get("finish_reason") not in ("length", "content_filter")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Passing(f"its answer is no chat completion: {self._clean(raw)}") from None
        return Chain(self._without_key(text), finished)

    def _refusal(self, error: urllib.error.HTTPError, ends: float) -> Exception:
        try:
            raw = _read(error, ends)
        except (OSError, http.client.HTTPException, _Passing):
            raw = b""
        word = self._clean(_message(raw))
        said = f"HTTP {error.code}" + (f": {word}" if word else "")
        if error.code in TRY_AGAIN and not any(mark in raw.decode(errors="replace") for mark in SPENT):
            return _Passing(said, _retry_after(error.headers.get("Retry-After")))
        if error.code in OF_THE_QUESTION:
            return Refused(said)
        if 300 <= error.code < 400:
            to = self._without_key(error.headers.get("Location") or "another address")
            return RunFailed(f"{self._who()} sends requests on to {to}: name that address with --server")
        hint = {
            401: "is the key right? --key-env names the environment variable that holds it"
            if self.settings.key
            else "it wants a key: put it into an environment variable and name that, as in --key-env OPENAI_API_KEY",
            403: "the key may not use this model",
            404: f"is --server the right address, and --server-model {self.settings.model!r} a name it knows?",
        }.get(error.code, "trying again cannot help")
        return RunFailed(f"{self._who()} refuses: {said}; {hint}")

    def _lost(self, error: Exception) -> Exception:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return _Passing(f"no answer within {self.settings.timeout:g} s")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RunFailed(f"{self._who()}: its certificate cannot be trusted: {cause.verify_message}")
        word = self._clean(f"{type(cause).__name__}: {cause}")
        if not self.answered and isinstance(cause, OSError) and not isinstance(cause, ConnectionResetError):
            return RunFailed(f"{self._who()} cannot be reached: {word}; is it running, and --server its address?")
        return _Passing(f"the connection was lost: {word}")

    def _who(self) -> str:
        return f"the server {self.settings.address}"

    def _clean(self, text: str | bytes) -> str:
        """One short line that holds no key."""
        told = text.decode(errors="replace") if isinstance(text, bytes) else text
        told = " ".join(scrubbed_text(self._without_key(told)).split())
        return told if len(told) <= 200 else f"{told[:200]}…"

    def _without_key(self, text: str) -> str:
        return text.replace(self.settings.key, GONE) if self.settings.key else text


def _read(response: Any, ends: float) -> bytes:
    """The whole body; urllib's own limit of time begins anew with every byte."""
    found = bytearray()
    while piece := response.read1(1 << 16):
        found += piece
        if time.monotonic() > ends:
            raise TimeoutError
        if len(found) > LARGEST_ANSWER:
            raise _Passing(f"its answer is longer than {LARGEST_ANSWER >> 20} MiB")
    if (left := getattr(response, "length", None)) not in (None, 0):
        raise http.client.IncompleteRead(bytes(found), left)
    return bytes(found)


def _text(message: Mapping[str, Any]) -> str:
    """Reasoning that a server tells apart goes back into its tags."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought.strip() and "<think>" not in text:
        return f"<think>{thought.strip()}</think>{text.removeprefix('</think>').lstrip()}"
    if "content" not in message:
        raise KeyError("content")
    return text


def _message(raw: bytes) -> str:
    try:
        told = json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")
    for name in ("error", "message", "detail"):
        if isinstance(told, dict) and told.get(name):
            told = told[name]
    return told if isinstance(told, str) else json.dumps(told)


def _retry_after(header: str | None) -> float | None:
    """Seconds; the header holds them, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
