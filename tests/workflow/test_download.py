"""The download rule: what a failed job fetched is still there for the next run."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

pytestmark = pytest.mark.slow

BODY = bytes(range(256)) * 4000
HALF = len(BODY) // 2
TARGET = "resources/raw/steam/steam_games.json.gz"


class Handler(BaseHTTPRequestHandler):
    """Half of the body, then nothing, then the rest."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if len(self.server.ranges) == 2:
            return self.send_error(404)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {HALF}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(HALF if asked else len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[HALF:] if asked else BODY[:HALF])

    def log_message(self, *_):
        """Keep the test's output clean."""


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.ranges = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_failed_download_goes_on_where_it_stopped(clean, server):
    path = clean.folder / "resources/checksums.yaml"
    listed = yaml.safe_load(path.read_text())
    listed["steam"]["steam_games.json.gz"] |= {
        "url": f"http://127.0.0.1:{server.server_port}/steam_games.json.gz",
        "bytes": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
    }
    path.write_text(yaml.safe_dump(listed))
    failed = clean.run(TARGET, check=False)
    assert failed.returncode != 0
    assert "HTTP 404" in clean.read("results/logs/data/steam/download-steam_games.json.gz.log")
    assert not (clean.folder / TARGET).exists()
    clean.run(TARGET)
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF}-"]
    assert (clean.folder / TARGET).read_bytes() == BODY
    assert "download" not in clean.plan(TARGET).rules
