"""The page at `/`: a person types a sentence and sees label and probabilities. It loads nothing from elsewhere."""

import base64
import hashlib
import re
from importlib.resources import files

from sentexp.config import TargetKind


def page(
    name: str, labels: list[str], pairs: bool = False, kind: TargetKind = TargetKind.classes
) -> tuple[str, dict[str, str]]:
    """Return the page and its headers, which let it run its own script and ask this server alone.

    Args:
        name: of the run.
        labels: of the run.
        pairs: whether it reads a second text.
        kind: what it predicts.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    text = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    content = text.render(name=name, labels=labels, pairs=pairs, kind=kind.name)
    digests = {tag: _digest(content, tag) for tag in ("script", "style")}
    policy = f"default-src 'none'; connect-src 'self'; script-src '{digests['script']}'; style-src '{digests['style']}'"
    return content, {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
    }


def _digest(text: str, tag: str) -> str:
    """Return how a Content-Security-Policy names the one script or style of a page."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert match is not None
    return f"sha256-{base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()}"
