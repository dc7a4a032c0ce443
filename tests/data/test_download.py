"""The download command against a server on the loopback."""

import contextlib
import errno
import hashlib
import http.client
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from shielded_recrl.data import download

ROOT = Path(__file__).resolve().parents[2]
BODY = bytes(range(256)) * 5000
OTHER = BODY[::-1]
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `BODY` as the path says; the server notes ranges asked for and bytes sent.

    /good     whole, or the range asked for     /flaky  503 twice, then good
    /cut      half of what is asked for, twice  /short  always half, and no range
    /norange  as /cut, but deaf to ranges       /changing  cut, then another version
    /late     429 with Retry-After, then good   /stall  half, then silence, then good
    /long     more bytes than announced         /endless  chunks without end
    /starred  as /cut, but its parts tell no total, and the second one is cut for good
    /chunked  whole, in chunks and so without its size
    /renewed  most of it, then another version in ten parts
    /garbage  no answer of HTTP                 /astray  elsewhere, at what is no address
    """

    def do_GET(self):
        self.server.paths.append(self.path)
        tries = self.server.paths.count(self.path)
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        body, etag, start, sent = BODY, '"one"', 0, None
        if self.path == "/gone":
            return self.send_error(404)
        if self.path == "/busy" or (self.path == "/flaky" and tries < 3):
            return self.send_error(503)
        if self.path.startswith("/late") and tries == 1:
            self.send_response(429)
            self.send_header("Retry-After", self.server.retry_after)
            return self.end_headers()
        if self.path == "/page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            return self.wfile.write(b"please log in")
        if self.path == "/astray":
            self.send_response(302)
            self.send_header("Location", "https://[x/f")
            return self.end_headers()
        if self.path == "/garbage":
            return self.wfile.write(b"garbage\r\n\r\n")
        if self.path == "/chunked":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        if self.path == "/endless":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self.send_chunks()
        if self.path in ("/changing", "/renewed") and tries > 1:
            body, etag = OTHER, '"two"'
        plain = self.path in ("/short", "/norange")
        if asked and not plain and self.headers["If-Range"] == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
        if self.path == "/short" or (self.path in ("/cut", "/norange", "/changing") and tries < 3):
            sent = (len(body) - start) // 2
        if self.path in ("/stall", "/starred") and tries == 1:
            sent = len(body) // 2
        if self.path == "/starred" and tries == 2:
            sent = len(body) // 4
        if self.path == "/renewed":
            sent = len(body) * 9 // 10 if tries == 1 else len(body) // 10
        self.send_response(206 if start else 200)
        if start:
            total = "*" if self.path == "/starred" else len(body)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{total}")
        if self.path != "/short":
            self.send_header("ETag", etag)
        announced = len(body) - start - (10 if self.path == "/long" else 0)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        part = body[start:][:sent]
        # Counted first: the other side may be done before a write returns here.
        self.server.served += len(part)
        # It hangs up where it was offered too much.
        with contextlib.suppress(OSError):
            self.wfile.write(part)
        if self.path == "/stall" and tries == 1:
            self.wfile.flush()
            self.server.over.wait(10)

    def send_chunks(self):
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def log_message(self, *_):
        """Keep the test's output clean."""


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.paths, server.ranges, server.served = [], [], 0
    server.retry_after = "0"
    server.over = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(command, server, tmp_path):
    def run(path, *words):
        out = ("--out", tmp_path / "file.bin", "--backoff", 0.01)
        return command("download", "--url", f"{server.url}{path}", *out, *words)

    return run


def test_good(fetch, tmp_path):
    ended = fetch("/good", "--sha256", DIGEST, "--size", len(BODY))
    assert ended.code == 0
    assert DIGEST in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_busy_then_good(fetch, server, tmp_path):
    ended = fetch("/flaky", "--sha256", DIGEST)
    assert ended.code == 0
    assert len(server.paths) == 3
    assert ended.stderr.count("HTTP 503") == 2
    assert (tmp_path / "file.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "words", "tries", "expected"),
    [
        ("/good", ("--sha256", "0" * 64), 1, f"sha256 is {DIGEST}"),
        ("/good", ("--md5", "0" * 32), 1, "md5 is "),
        ("/good", ("--sha256", DIGEST, "--md5", "0" * 32), 1, "(from --md5); the bytes were"),
        ("/good", ("--size", 7), 1, f"{len(BODY)} bytes on offer, expected 7"),
        ("/good", ("--max-bytes", 7), 1, f"{len(BODY)} bytes on offer, more than max_bytes 7"),
        ("/endless", ("--max-bytes", 99_999), 1, "more than the 99999 bytes expected"),
        ("/endless", ("--size", 99_999), 1, "more than the 99999 bytes expected"),
        ("/long", ("--size", len(BODY)), 1, f"{len(BODY) - 10} bytes on offer"),
        ("/long", ("--sha256", DIGEST), 1, "sha256 is "),
        ("/page", (), 1, "a web page, not the file"),
        ("/gone", (), 1, "HTTP 404"),
        ("/astray", ("--retries", 1), 2, "Invalid IPv6 URL after 2 tries"),
        ("/garbage", ("--retries", 1), 2, "garbage after 2 tries"),
        ("/busy", ("--retries", 2), 3, "after 3 tries"),
        ("/short", ("--retries", 1), 2, f"{len(BODY) // 2} of {len(BODY)} bytes"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(
    fetch, server, tmp_path, path, words, tries, expected
):
    ended = fetch(path, *words)
    assert ended.code == 1
    assert expected in ended.message
    assert "\n" not in ended.message
    assert len(server.paths) == tries
    assert list(tmp_path.iterdir()) == []


def test_a_cut_transfer_goes_on_where_it_stopped(fetch, server, tmp_path):
    # One further try is allowed, and two are needed: those that bring bytes do not count.
    ended = fetch("/cut", "--sha256", DIGEST, "--retries", 1)
    assert ended.code == 0
    half = len(BODY) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert server.served == len(BODY)
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_a_total_once_told_holds_for_the_parts_that_tell_none(fetch, server, tmp_path):
    ended = fetch("/starred")
    assert ended.code == 0
    assert f"{len(BODY) * 3 // 4} of {len(BODY)} bytes arrived" in ended.stderr
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert (tmp_path / "file.bin.sha256").read_text().startswith(DIGEST)


def test_a_digest_of_unknown_size_is_not_recorded(fetch, tmp_path):
    ended = fetch("/chunked")
    assert ended.code == 0
    assert "nothing was recorded" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert fetch("/chunked", "--size", len(BODY)).code == 0
    assert (tmp_path / "file.bin.sha256").read_text().startswith(DIGEST)


def test_bytes_of_a_new_version_are_new(fetch, server, tmp_path):
    ended = fetch("/renewed", "--retries", 2)
    assert ended.code == 0
    assert len(server.paths) == 11
    assert (tmp_path / "file.bin").read_bytes() == OTHER


def test_the_next_run_goes_on_where_the_last_one_stopped(fetch, server, tmp_path):
    half = len(BODY) // 2
    ended = fetch("/cut", "--sha256", DIGEST, "--retries", 0)
    assert f"{half} bytes are kept for the next run" in ended.message
    assert {path.name for path in tmp_path.iterdir()} == {
        "file.bin.partial",
        "file.bin.partial.json",
    }
    assert (tmp_path / "file.bin.partial").read_bytes() == BODY[:half]
    assert fetch("/cut", "--sha256", DIGEST, "--retries", 1).code == 0
    assert server.served == len(BODY)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_bytes_survive_a_killed_process(server, tmp_path):
    words = ("download", "--url", f"{server.url}/stall", "--out", tmp_path / "file.bin")
    command = [sys.executable, "-m", "shielded_recrl.data", *map(str, words)]
    partial = tmp_path / "file.bin.partial"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size == len(BODY) // 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    subprocess.run([*command, "--sha256", DIGEST], check=True, capture_output=True)
    assert server.ranges == [None, f"bytes={len(BODY) // 2}-"]
    assert server.served == len(BODY)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_whole_but_not_yet_named_is_not_fetched_again(fetch, server, tmp_path):
    fetch("/cut", "--retries", 0)
    (tmp_path / "file.bin.partial").write_bytes(BODY)
    assert fetch("/cut", "--sha256", DIGEST).code == 0
    assert len(server.paths) == 1


def test_silence_is_given_up_and_what_came_is_kept(fetch, server, tmp_path):
    ended = fetch("/stall", "--sha256", DIGEST, "--timeout", 0.3)
    assert ended.code == 0
    assert "timed out" in ended.stderr
    assert server.served == len(BODY)


def test_a_server_deaf_to_ranges_starts_again(fetch, server, tmp_path):
    ended = fetch("/norange", "--sha256", DIGEST)
    assert ended.code == 0
    half = len(BODY) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half}-"]
    assert server.served == 2 * half + len(BODY)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_versions_are_never_mixed(fetch, server, tmp_path):
    ended = fetch("/changing")
    assert ended.code == 0
    assert server.ranges[1] == f"bytes={len(BODY) // 2}-"
    assert (tmp_path / "file.bin").read_bytes() == OTHER


def test_bytes_of_another_address_are_no_part(fetch, server, tmp_path):
    fetch("/cut", "--retries", 0)
    assert fetch("/good", "--sha256", DIGEST).code == 0
    assert server.ranges == [None, None]


@pytest.mark.parametrize("damage", ["{", "[]", "{}", ""])
def test_a_damaged_record_starts_again(fetch, server, tmp_path, damage):
    fetch("/cut", "--retries", 0)
    (tmp_path / "file.bin.partial.json").write_text(damage)
    assert fetch("/good", "--sha256", DIGEST).code == 0
    assert server.ranges == [None, None]


def test_more_than_the_whole_starts_again(fetch, server, tmp_path):
    fetch("/cut", "--retries", 0)
    (tmp_path / "file.bin.partial").write_bytes(BODY + b"x")
    assert fetch("/cut", "--sha256", DIGEST).code == 0
    assert server.ranges[1] is None


def test_retry_after_is_waited_for(fetch, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.retry_after = "7"
    ended = fetch("/late", "--sha256", DIGEST)
    assert ended.code == 0
    assert pauses == [7]
    server.retry_after = formatdate(time.time() + 100, usegmt=True)
    assert fetch("/late2", "--sha256", DIGEST).code == 0
    assert pauses[1] == pytest.approx(100, abs=5)


def test_too_long_a_pause_is_left_to_the_user(fetch, server):
    server.retry_after = "86400"
    ended = fetch("/late")
    assert "HTTP 429" in ended.message
    assert "come back in 86400 s" in ended.message
    assert len(server.paths) == 1


def test_pauses_double_and_start_again_after_progress(fetch, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    assert fetch("/busy", "--backoff", 2, "--retries", 3).code == 1
    assert pauses == [2, 4, 8]
    pauses.clear()
    assert fetch("/cut", "--backoff", 2).code == 0
    assert pauses == [2, 2]


def test_a_full_disk_keeps_what_came(fetch, server, tmp_path, monkeypatch):
    real = http.client.HTTPResponse.read1
    blocks = []

    def read1(self, amount):
        if blocks:
            raise OSError(errno.ENOSPC, "No space left on device")
        blocks.append(real(self, 1000))
        return blocks[0]

    monkeypatch.setattr(http.client.HTTPResponse, "read1", read1)
    ended = fetch("/good", "--sha256", DIGEST)
    assert "No space left on device" in ended.message
    assert "the 1000 bytes here are kept" in ended.message
    monkeypatch.undo()
    assert len(server.paths) == 1
    assert (tmp_path / "file.bin.partial").read_bytes() == BODY[:1000]


def test_first_use_records_the_digest_and_later_use_enforces_it(fetch, tmp_path):
    ended = fetch("/good", "--sha256", None)
    assert ended.code == 0
    assert f"recorded {DIGEST}" in ended.stderr
    record = tmp_path / "file.bin.sha256"
    assert record.read_text() == f"{DIGEST}  file.bin\n"
    assert fetch("/good").code == 0
    record.write_text(f"{'0' * 64}  file.bin\n")
    assert str(record) in fetch("/good").message


def test_nobody_listens(command, server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/good"
    server.server_close()
    words = ("--out", tmp_path / "f", "--retries", 1, "--backoff", 0.01)
    ended = command("download", "--url", url, *words)
    assert "refused" in ended.message
    assert "give its path as the source" in ended.message


@pytest.mark.parametrize(
    "url",
    [
        "ml-25m.zip",
        "file:///etc/hostname",
        "ftp://example.org/x",
        "https://[x/f",
        "http://127.0.0.1:1/\u00fc",
        "http://127.0.0.1:1/a b",
        "http://127.0.0.1:x/f",
        "https:///f",
    ],
)
def test_no_web_address(command, tmp_path, url):
    ended = command("download", "--url", url, "--out", tmp_path / "f")
    assert "expected https://" in ended.message
    assert "\n" not in ended.message


def test_checksums_are_well_formed():
    listed = yaml.safe_load((ROOT / "resources" / "checksums.yaml").read_text())
    assert set(listed) == {"books-2014", "books-2023", "goemotions", "ml25m", "redial", "steam"}
    for files in listed.values():
        assert 1 <= len(files) <= 3
        for name, entry in files.items():
            assert {"url", "license"} < set(entry)
            assert set(entry) <= {"url", "bytes", "max_bytes", "sha256", "md5", "license"}
            assert entry["url"] is None or entry["url"].startswith("https://")
            assert entry["url"] is None or entry["url"].endswith(f"/{name}")
            assert ("bytes" in entry) != ("max_bytes" in entry)
            for digest, length in (("sha256", 32), ("md5", 16)):
                assert digest not in entry or len(bytes.fromhex(entry[digest])) == length
