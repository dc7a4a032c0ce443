"""Keys that a command is given are in nothing it says or writes, also where it fails."""

import http.server
import os
import subprocess
import sys
import threading

import pytest

from planted import SECRETS, names_in, told
from shielded_recrl.rl.logs import open_loggers


class Refusing(http.server.BaseHTTPRequestHandler):
    """A hub that refuses everybody, and repeats what it was sent."""

    def do_GET(self):
        said = self.headers.get("Authorization", "")
        self.server.heard.append(said)
        body = f"You sent {said}".encode()
        self.send_response(401, f"You sent {said}")
        self.send_header("X-Error-Message", f"You sent {said}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.heard = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_token_that_the_hub_refuses(tmp_path, hub):
    command = "shielded_recrl.explainer fetch --repository a/b --out model"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--revision", "0" * 40],
        cwd=tmp_path,
        env=os.environ
        | SECRETS
        | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
        | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        check=False,
    )
    assert f"Bearer {SECRETS['HF_TOKEN']}" in hub.heard
    assert done.returncode == 1
    assert b"error: explainer.base: a/b at 000" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert names_in(done.stdout + done.stderr) == []
    assert told(tmp_path) == []


def test_the_key_of_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with open_loggers(tmp_path, ["wandb"], run_name="run", config={"a": 1}, first_step=1) as write:
        write({"step": 1, "reward": 0.5})
    assert list(tmp_path.rglob("*.wandb"))
    assert told(tmp_path) == []
