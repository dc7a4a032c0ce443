"""The download command against a server on the loopback."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BODY = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """`/good` serves the body; `/flaky` does so at the third try; `/short` stops half way."""

    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path == "/gone":
            self.send_error(404)
        elif self.path == "/busy" or (self.path == "/flaky" and len(self.server.paths) < 3):
            self.send_error(503)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[: len(BODY) // 2] if self.path == "/short" else BODY)

    def log_message(self, *_):
        """Keep the test's output clean."""


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
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
        ("/good", ("--size", 7), 1, "expected 7"),
        ("/gone", (), 1, "HTTP 404"),
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


@pytest.mark.parametrize("url", ["ml-25m.zip", "file:///etc/hostname", "ftp://example.org/x"])
def test_no_web_address(command, tmp_path, url):
    ended = command("download", "--url", url, "--out", tmp_path / "f")
    assert "expected https://" in ended.message


def test_checksums_are_well_formed():
    listed = yaml.safe_load((ROOT / "resources" / "checksums.yaml").read_text())
    assert set(listed) == {"books", "ml25m", "steam"}
    for files in listed.values():
        for name, entry in files.items():
            assert set(entry) == {"url", "bytes", "sha256", "license"}
            assert entry["url"] is None or entry["url"].endswith(f"/{name}")
            assert entry["sha256"] is None or len(bytes.fromhex(entry["sha256"])) == 32
