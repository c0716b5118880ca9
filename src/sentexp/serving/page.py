"""The page at `/`: a person types a sentence and sees label and probabilities. It loads nothing from elsewhere."""

import base64
import hashlib
import re
from importlib.resources import files


def page(name: str, labels: list[str]) -> tuple[str, dict[str, str]]:
    """Return the page and its headers, which let it run its own script and ask this server alone.

    Args:
        name: of the run.
        labels: of the run.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    text = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    whole = text.render(name=name, labels=labels)
    own = {tag: _digest(whole, tag) for tag in ("script", "style")}
    policy = f"default-src 'none'; connect-src 'self'; script-src '{own['script']}'; style-src '{own['style']}'"
    return whole, {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
    }


def _digest(text: str, tag: str) -> str:
    """Return how a Content-Security-Policy names the one script or style of a page."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return f"sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}"
