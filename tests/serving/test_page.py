"""The page escapes what a run is called, and its policy lets its own script and style run alone."""

import base64
import hashlib
import re

from sentexp.serving.page import page


def test_names_and_labels_are_text():
    text, _ = page("<script>alert(1)</script>", ["good", '<img src="x">'])
    assert "<script>alert(1)" not in text
    assert "<img" not in text
    assert text.count("<script>") == text.count("<style>") == 1


def test_the_policy_names_its_script_and_its_style():
    text, headers = page("run", ["bad", "good"])
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"(?:src|href)=|https?://|\son\w+=|style=", text)
