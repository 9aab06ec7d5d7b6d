"""The page at /: one file, which may load nothing from elsewhere and run no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import HTMLResponse

__all__ = ["page_response"]


def page_response() -> HTMLResponse:
    """The page, with headers by which a browser runs its own script and style and nothing else."""
    text, policy = _page()
    return HTMLResponse(
        text,
        headers={
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


@cache
def _page() -> tuple[str, str]:
    text = files("questlm.serving").joinpath("page.html").read_text(encoding="utf-8")
    hashes = {
        tag: "".join(f" 'sha256-{_digest(inner)}'" for inner in re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL))
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src{hashes['script']}; "
        f"style-src{hashes['style']}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _digest(inner: str) -> str:
    return base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
