"""Servers for tests: one with fixed answers, and a real `transformers serve`."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.programs import find_free_port


needs_serving = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="needs `pip install transformers[serving]`",
)


class FakeServer:
    """
    A server that answers every prompt with the prompt and the seed of the request. Tests change its attributes.

    `respond(request, number)` returns the status, body and headers for a request, whose number counts from 0. If it
    returns `None`, the server answers with `choices(request)` choices.
    """

    def __init__(self):
        self.requests = []
        self.paths = []
        self.all_headers = []
        self.concurrent = self.max_concurrent = 0
        self.lock = threading.Lock()
        self.respond = lambda request, number: None
        self.choices = lambda request: request.get("n", 1)
        self.delay = 0.0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                fake.all_headers.append(self.headers)
                self.reply(404, "{}")

            def do_POST(self):  # noqa: N802
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    number = len(fake.requests)
                    fake.requests.append(request)
                    fake.paths.append(self.path)
                    fake.headers = self.headers
                    fake.all_headers.append(self.headers)
                    fake.concurrent += 1
                    fake.max_concurrent = max(fake.max_concurrent, fake.concurrent)
                time.sleep(fake.delay)
                response = fake.respond(request, number) or (200, json.dumps(fake.answer(request)), {})
                with fake.lock:
                    fake.concurrent -= 1
                self.reply(*response)

            def reply(self, status, body, headers=()):
                self.send_response(status)
                headers = {"Content-Type": "application/json", "retry-after-ms": "1", **dict(headers)}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # clients may disconnect after an error
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        prompt = request["prompt"] if "prompt" in request else request["messages"][-1]["content"]
        texts = [f"{prompt} {request['seed']} {index}" for index in range(self.choices(request))]
        reasons = ["stop" if index % 2 == 0 else "length" for index in range(len(texts))]
        if "prompt" in request:
            choices = [{"text": text, "finish_reason": reason} for text, reason in zip(texts, reasons, strict=True)]
        else:
            choices = [
                {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
                for text, reason in zip(texts, reasons, strict=True)
            ]
        return {"choices": choices}


@contextlib.contextmanager
def run_server(folder, command=None, seconds=120):
    """Runs `transformers serve` with the model in a folder, or another command, and yields the URL of its API."""
    port = find_free_port()
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    command = serve if command is None else command
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + seconds
        while not _is_running(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "serve.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _is_running(url):
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
