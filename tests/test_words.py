"""The words: phrases that read like a translation are not used in the documentation and in the sources.

Each phrase comes with what to say instead.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BANNED = {
    r"cannot be told|told apart|tell(s|ing)? \w*\s?apart": "do not differ significantly; separate",
    r"\b(go|goes|going|went|gone) on\b": "resume, continue",
    r"(?<!there )\bis no (?!longer|more|smaller)\w": "is not a",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\btak(e|es|en|ing) off\b": "remove",
    r"\b(stands?|stood)\b(?! (for|in for)\b)": "is",
    r"\b(is|are|was|were) told\b": "is reported, is shown",
    r"\bhow surely\b|\bsurely better\b": "how certain, significantly better",
    r"\bbeyond noise\b": "significantly",
    r"\bbefore its end\b": "early",
    r"\bone's own\b": "your own",
    r"\bwritten down\b": "recorded",
    r"\bgiven again\b": "the same command again",
    r"\ball the same\b": "anyway",
    r"\b(rows|probabilities) say\b|\bhas said\b|\bwhat \w+ said\b": "predicts, predictions",
    r"\bis at it\b": "is working on it",
    r"\bno (word|verb) of\b|\bis no verb\b": "not a command",
}
"""Regular expressions, and what to say instead."""

GENERATED = ("commands.md", "configuration.md", "presets.md")
"""Pages that hold the words of `conf/` and of the help."""
PACKAGES = sorted(folder.name for folder in (ROOT / "src" / "sentexp").iterdir() if folder.is_dir())
"""Packages whose words are checked."""


def files():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    sources = [file for package in PACKAGES for file in (ROOT / "src" / "sentexp" / package).rglob("*")]
    return [file for file in pages if file.name not in GENERATED] + [
        file for file in sources if file.suffix in (".py", ".j2")
    ]


def prose(file):
    """Return the text of a file in one line; blocks of documentation that show what programs print are left out."""
    text = file.read_text()
    if file.suffix == ".md":
        text = re.sub(r"^```text\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\"\s*\n\s*f?r?\"", "", text)  # a string over two lines
    return re.sub(r"\s*\n\s*#?\s*", " ", text)


@pytest.mark.parametrize("pattern", BANNED)
def test_no_stilted_phrase(pattern):
    found = [
        f"{file.relative_to(ROOT)}: ...{text[max(0, hit.start() - 40) : hit.end() + 20]}..."
        for file in files()
        for text in [prose(file)]
        for hit in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert not found, f"say {BANNED[pattern]}: " + "\n".join(found)


def test_phrases_are_found_over_the_ends_of_lines(tmp_path):
    file = tmp_path / "page.py"
    file.write_text('raise UserError(\n    "two runs cannot be "\n    f"told apart here: it goes "\n    "on."\n)\n')
    assert re.search(next(iter(BANNED)), prose(file))
    assert re.search(list(BANNED)[1], prose(file))
