"""A server that answers as an OpenAI-compatible one does, on a free port of this machine."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(words):
    """A chat completion as OpenAI's API writes it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": words},
                "finish_reason": "stop",
            }
        ],
    }


class Handler(BaseHTTPRequestHandler):
    """Notes what is asked, and answers as `server.reply` decides: status, headers, body."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        # Some tests are about a client that hangs up.
        with contextlib.suppress(ConnectionError):
            self.say(*self.server.reply(body))

    def say(self, status, headers, answer):
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if not self.server.pause:
            return self.wfile.write(raw)
        for byte in raw:
            self.wfile.write(bytes([byte]))
            time.sleep(self.server.pause)

    do_GET = do_POST

    def log_message(self, *_):
        """The test's output is that of the command alone."""


@contextlib.contextmanager
def listening():
    """A server on a free port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.asked, serving.pause = [], 0
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        serving.url = f"http://127.0.0.1:{serving.server_address[1]}/v1"
        yield serving
        serving.shutdown()
        thread.join()
