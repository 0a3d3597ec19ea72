"""A real S3 server in a process of its own, and a proxy before it that spoils what a test asks for."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Literal

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTSOFTHESTORE1",
    "AWS_SECRET_ACCESS_KEY": "test+secret/that-must-stand-nowhere",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def served() -> Iterator[int]:
    """Port of a new server with the empty bucket `bucket`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            give_up_at = time.monotonic() + 60
            while True:
                try:
                    request(port, "PUT", "/bucket")
                    break
                except ConnectionRefusedError:
                    assert server.poll() is None and time.monotonic() < give_up_at, "the server did not start"
                    time.sleep(0.1)
            yield port
        finally:
            server.kill()


def request(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    """What the server answers."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())


@dataclass(frozen=True)
class Answer:
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match."""

    kind: Literal["500", "503", "403", "slow", "hang", "cut", "shorten"]
    """A status; an answer a second late; none; a connection cut after the body; half a body that looks whole."""
    of: str = ""
    """Pattern of `METHOD /bucket/path?query`."""
    times: float = float("inf")
    hits: int = 0


@dataclass
class Faults:
    """Faults that are on, and the port that has them."""

    port: int
    on: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> Fault:
        """Turn a fault on."""
        self.on.append(fault)
        return fault


@contextlib.contextmanager
def spoiled(server_port: int) -> Iterator[Faults]:
    """A port that answers as the server does but for the faults that are on."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self._body()
            fault = self._fault()
            kind = fault.kind if fault else ""
            if kind == "hang":
                time.sleep(30)
            elif kind == "slow":
                time.sleep(1)
            elif kind == "cut":
                self.close_connection = True
                return
            elif kind.isdigit():
                name = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}[kind]
                self._send(Answer(int(kind), {}, f"<Error><Code>{name}</Code><Message>no</Message></Error>".encode()))
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            if kind == "shorten":
                body = body[: len(body) // 2]
                headers = {name: value for name, value in headers.items() if "content" not in name.lower()}
                headers = {name: value for name, value in headers.items() if "checksum" not in name.lower()}
            headers["Content-Length"] = str(len(body))
            self._send(request(server_port, self.command, self.path, body, headers))

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size) + b"")
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _fault(self) -> Fault | None:
            for fault in faults.on:
                if fault.hits < fault.times and re.search(fault.of, f"{self.command} {self.path}"):
                    fault.hits += 1
                    return fault
            return None

        def _send(self, answer: Answer) -> None:
            with contextlib.suppress(ConnectionError):  # the client gave up
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = answer.headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    faults = Faults(server.server_address[1])
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
