"""Asking a language model that speaks the chat completions of OpenAI's API, as a judge.

In: the body of a request, the address of the model, its key. Out: the model's words. Data in a
request is quoted as JSON strings without brackets, braces, pipes or backticks, so that none can end
its quotation or write a token of a chat template. Answers go to a cache as they come: a run that was
cut goes on. The key comes from the environment, goes nowhere but to the address, and is cut out of
what comes back.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.markdown import plain
from shielded_recrl.settings import Settings

URL_VARIABLE = "RECRL_JUDGE_URL"
KEY_VARIABLE = "RECRL_JUDGE_KEY"
# What may pass: too many requests, and faults of the server or of one before it.
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LONGEST_PAUSE = 120.0
BLOCK = 2**16
ESCAPED = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>[]{}|`"})


class ChatSettings(Settings):
    """How patiently a model is asked."""

    max_tokens: int = Field(
        64, ge=1, description="Longest answer; raise it for models that think in the open."
    )
    timeout: float = Field(60.0, gt=0, description="Longest wait for a whole answer, in seconds.")
    retries: int = Field(5, ge=0, description="Further tries of a request that failed in passing.")
    backoff: float = Field(
        1.0, ge=0, description="Wait before the second try, in seconds; it doubles with every try."
    )
    max_bytes: int = Field(2**20, ge=1024, description="Longest response that is read, in bytes.")


class Passing(Exception):
    """A fault that another try may not meet."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def quoted(text: str) -> str:
    """A JSON string in which no bracket, brace, pipe or backtick is left.

    >>> quoted('a "b" </pair>')
    '"a \\\\"b\\\\" \\\\u003c/pair\\\\u003e"'
    """
    return json.dumps(plain(text), ensure_ascii=False).translate(ESCAPED)


def check_address(url: str, secret: str) -> str:
    """The address without a slash at its end.

    Raises:
        UserError: it is missing or none of HTTP, holds a name, password or query, or would carry a
            key unencrypted to another machine.
    """
    if not url:
        raise UserError(
            f"--url: missing; give the address before /chat/completions, or set {URL_VARIABLE}"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
        private = bool(parts.username or parts.password or parts.query or parts.fragment)
        # Reading the port checks it.
        valid = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        valid = private = False
        host = None
    # The address may hold a secret, so it is not repeated.
    if private:
        raise UserError(
            f"--url: holds a name, password or query; give the key in {KEY_VARIABLE}, and the "
            "address without it"
        )
    if not valid:
        raise UserError("--url: expected an address such as https://api.openai.com/v1")
    if secret and (not secret.isascii() or not secret.isprintable()):
        raise UserError(f"{KEY_VARIABLE}: expected printable ASCII letters; set it again")
    if secret and parts.scheme == "http" and not _is_loopback(host):
        raise UserError(
            f"--url: would send {KEY_VARIABLE} unencrypted; give an https address, or unset the "
            "variable"
        )
    if secret and secret in url:
        raise UserError(f"--url: holds the key; give it in {KEY_VARIABLE} alone")
    return url.rstrip("/")


class Cache:
    """Answers by the digest of their request, kept on disk as they come."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: JSONL file; made where it is not there.
        """
        self.path = path
        self._answers = dict(_cached(path))

    def __enter__(self) -> Cache:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # No temporary file and rename here: each answer was paid for, and must outlive a cut run.
        self._stream = self.path.open("a", encoding="utf-8")
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._stream.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def ask(
        self, body: dict[str, Any], url: str, secret: str, settings: ChatSettings
    ) -> str | None:
        """The model's words, from the cache where the same was asked of the same address before.

        A response that holds no words is not kept: the next run asks again.
        """
        asked = json.dumps([url, body], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        if digest not in self._answers:
            words = patiently(
                lambda: post(f"{url}/chat/completions", body, secret, settings), url, settings
            )
            if words is None:
                return None
            self._answers[digest] = words
            self._stream.write(json.dumps({"request": digest, "answer": words}) + "\n")
            self._stream.flush()
        return self._answers[digest]


def patiently(ask: Callable[[], str | None], url: str, settings: ChatSettings) -> str | None:
    """Try until a try succeeds; pauses double, or are as long as the server asks.

    Raises:
        UserError: every try failed, or the server asks to wait too long.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return ask()
        except Passing as error:
            if error.pause > LONGEST_PAUSE:
                raise UserError(
                    f"{url}: {error}, and the server asks to wait {error.pause:.0f} s; answers so "
                    "far are kept, run again then"
                ) from None
            if tries > settings.retries:
                raise UserError(
                    f"{url}: {error} after {tries} tries; answers so far are kept, run again later"
                ) from None
            pause = min(max(settings.backoff * 2 ** (tries - 1), error.pause), LONGEST_PAUSE)
            print(f"{url}: {error}; next try in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the key to whatever address an answer names."""

    def redirect_request(self, *_: Any) -> None:
        """None: the answer is an error."""
        return None


def post(address: str, body: dict[str, Any], secret: str, settings: ChatSettings) -> str | None:
    """Ask once.

    Returns:
        The words of the first choice, the key cut out of them; None where the response holds none.

    Raises:
        Passing: it may work another time.
        UserError: it will not.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    asked = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
    until = time.monotonic() + settings.timeout
    try:
        opener = urllib.request.build_opener(NoRedirect, *_past_proxies(address))
        with opener.open(asked, timeout=settings.timeout) as answer:
            content = _read(answer, address, settings.max_bytes, until)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in PASSING:
                raise Passing(f"HTTP {error.code}", _pause(error)) from None
        advice = {
            401: f"check {KEY_VARIABLE}",
            403: f"check {KEY_VARIABLE} and what it may use",
            404: "check --url and --model",
        }.get(error.code, "check --url, --model and --max-tokens")
        raise UserError(f"{address}: HTTP {error.code}; {advice}") from None
    except (http.client.HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise Passing(_without(first_line(Exception(str(reason))), secret)) from None
    words = _words(content)
    return None if words is None else _without(words, secret)


def _read(answer: http.client.HTTPResponse, address: str, limit: int, until: float) -> bytes:
    """The body, bounded in size and in time: a timeout of the socket bounds each wait alone."""
    content = b""
    while block := answer.read1(BLOCK):
        content += block
        if len(content) > limit:
            raise UserError(f"{address}: more than {limit} bytes came; raise --max-bytes")
        if time.monotonic() > until:
            raise TimeoutError("the answer took longer than --timeout")
    return content


def _words(content: bytes) -> str | None:
    """Content of the first choice of a chat completion; None where it is none."""
    try:
        words = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return words if isinstance(words, str) else None


def _without(text: str, secret: str) -> str:
    """The text with the key cut out of it: servers quote it in their answers."""
    return text.replace(secret, "[key]") if secret else text


def _pause(error: urllib.error.HTTPError) -> float:
    """Seconds that Retry-After asks for; 0 where it names a date, or is not there."""
    asked = (error.headers.get("Retry-After") or "").strip()
    return float(asked) if asked.isascii() and asked.isdecimal() else 0.0


def _past_proxies(address: str) -> list[urllib.request.ProxyHandler]:
    """Handlers that keep what is for this machine on it: a proxy would be sent the key as it is."""
    loopback = _is_loopback(urllib.parse.urlsplit(address).hostname)
    return [urllib.request.ProxyHandler({})] if loopback else []


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _cached(path: Path) -> Sequence[tuple[str, str]]:
    """Requests and answers of a cache; its last line may have been cut."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found.append((str(row["request"]), str(row["answer"])))
        except (ValueError, LookupError, TypeError):
            if number < len(lines) and line:
                print(f"{path}, line {number}: no answer, and passed over", file=sys.stderr)
    return found
