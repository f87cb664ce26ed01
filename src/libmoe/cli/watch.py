"""``libmoe watch``."""

from __future__ import annotations

from pathlib import Path

from libmoe.cli.output import say


def run(run_dir: Path, port: int, once: Path | None) -> None:
    from libmoe.core.files import write_atomically
    from libmoe.train.live_page import HOST, page, serve
    from libmoe.train.live_view import RunView

    view = RunView(run_dir)
    data = view.look()
    say(f"{data['name']} is {data['state']}: {data['words']}")
    if once is not None:
        write_atomically(once, page(data).encode())
        say(f"Page: {once}")
        return
    with serve(view, port) as server:
        say(f"Watch it at http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends this, not the run)")
        server.serve_forever()
