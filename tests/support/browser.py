"""A page in a real browser, without a window and without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browse(source: str, folder: Path, script: str = "") -> tuple[str, list[str]]:
    """The document after the browser has run it, and what it wrote to the console.

    ``script`` runs after that of the page, in a copy whose policy lets it.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.fail(f"no browser: none of {', '.join(NAMES)} is in PATH")
    if script:
        source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
        source = source.replace("</body>", f"<script>{{{script}}}</script></body>")
    path = folder / "report.html"
    path.write_text(source, encoding="utf-8", errors="replace")
    done = subprocess.run(
        [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
