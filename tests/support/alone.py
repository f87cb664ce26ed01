"""A page that asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import re

NAMESPACE = "http://www.w3.org/2000/svg"
"""A name, never fetched."""


def check_alone(source: str) -> None:
    """The page fetches nothing, links only within itself, and its policy lets no script run but its own."""
    foreign = r"@import|url\(|fetch\(|XMLHttpRequest|import\(|\beval\(|<(link|img|iframe|form)\b"
    assert not re.search(foreign, source)
    assert set(re.findall(r"https?://[^\"' ]+", source)) == {NAMESPACE}
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', source))
    script = source[source.rindex("<script>") + 8 : source.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source and "default-src 'none'" in source
