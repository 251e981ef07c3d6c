"""A web server on a real socket that has one file, and may break off, know no ranges, or send something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What the server does, and what it was asked."""

    content: bytes
    ranges: bool = True
    status: int | None = None  # answer with it instead
    break_after: list[int] = field(default_factory=list)  # of each connection in turn: bytes until it is closed
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request
    url: str = ""


@contextmanager
def serve_file(server: FileServer, name: str = "parts.tar.xz") -> Iterator[FileServer]:
    """Serve until the block ends; ``server.url`` is the file's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            server.asked.append(wanted)
            if server.status is not None:
                self.send_error(server.status)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
            total = len(server.content)
            self.send_response(206 if wanted and server.ranges else 200)
            if wanted and server.ranges:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            end = start + server.break_after.pop(0) if server.break_after else total
            self.wfile.write(server.content[start:end])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}/files/{name}"
        yield server
        http.shutdown()
