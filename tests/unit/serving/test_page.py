from __future__ import annotations

import base64
import hashlib
import re

from questlm.serving.page import page_response


def test_the_page_is_one_file_that_may_run_only_its_own_script() -> None:
    response = page_response()
    text, policy = bytes(response.body).decode(), response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    assert not re.search(r"style=|\son[a-z]+=", text)


def test_text_of_a_model_is_never_set_as_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page_response().body.decode()
    )
