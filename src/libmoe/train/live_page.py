"""The page of a run: written once, or served to this machine alone and renewed while the run goes on."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from libmoe.core.errors import ConfigError
from libmoe.core.files import to_json
from libmoe.train.live_view import RunView

HOST = "127.0.0.1"


def page(data: dict[str, Any]) -> str:
    """One HTML file that stands alone and needs no network."""
    template = resources.files("libmoe.train").joinpath("live_page.html").read_text(encoding="utf-8")
    return template.replace("DATA", to_json(data).replace("<", "\\u003c"))  # no text may end the script


def serve(view: RunView, port: int) -> ThreadingHTTPServer:
    """A server of the page on ``127.0.0.1``; call ``serve_forever()``.

    Raises:
        ConfigError: the port is taken or no port.
    """
    lock = threading.Lock()  # a view reads on; two requests at once would read lines twice

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").partition(":")[0]
            if host not in (HOST, "localhost"):  # a page elsewhere that points its name here
                self.send_error(403)
            elif self.path == "/data.json":
                self._answer("application/json", to_json(self._look()))
            elif self.path == "/":
                self._answer("text/html; charset=utf-8", page(self._look()))
            else:
                self.send_error(404)

        def _look(self) -> dict[str, Any]:
            with lock:
                return view.look()

        def _answer(self, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests every two seconds are no news."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {port}: {error}; choose another, or 0 for a free one") from None
