"""Labels that are probably one class in several spellings: what is proposed for them, for people to decide."""

import json
import re
import unicodedata
from collections.abc import Sequence

POLARITIES = {
    "negative": ("negative", "neg", "negativ"),
    "neutral": ("neutral", "neu", "neut"),
    "positive": ("positive", "pos", "positiv"),
}
"""The names of polarities, from the lowest to the highest, and the ways in which they are shortened."""
POLARITY_OF = {word: name for name, words in POLARITIES.items() for word in words}
PLAIN = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_. +-]*")
"""What a mapping on the command line takes without quotation marks."""


def proposed_classes(labels: Sequence[str]) -> dict[str, str]:
    """Return the class that each label probably is, by label; nothing where each is a class of its own.

    Labels are alike if they differ in nothing but case, width, blanks and punctuation, or in how a polarity is
    shortened; and numbers from 0 (or -1, 0 and 1) beside names of polarities are these in their order.

    Args:
        labels: the different ones.
    """
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_key(label), []).append(label)
    names = {key: key if key in POLARITIES else alike[0] for key, alike in groups.items()}
    polarities = [name for name in POLARITIES if name in groups]
    numbers = [label for label in labels if re.fullmatch(r"-?\d", label)]
    if len(polarities) > 1 and len(polarities) + len(numbers) == len(groups):
        lowest = -1 if "-1" in numbers and len(polarities) == len(POLARITIES) else 0
        numbered = {str(number): name for number, name in enumerate(polarities, lowest)}
        if numbers and set(numbers) <= set(numbered):
            names |= {number: numbered[number] for number in numbers}
    classes = {label: names[_key(label)] for label in labels}
    return classes if len(set(classes.values())) < len(labels) else {}


def proposal(labels: Sequence[str]) -> list[str]:
    """Return a sentence on labels that are probably one class, with the mapping as a line to paste; or none."""
    classes = proposed_classes(labels)
    alike = {name: [label for label in labels if classes[label] == name] for name in classes.values()}
    groups = [" and ".join(spellings) for spellings in alike.values() if len(spellings) > 1]
    if not groups:
        return []
    return [
        f"Labels that are probably one class: {'; '.join(groups)}. They are apart unless you paste {_line(classes)}."
    ]


def _line(classes: dict[str, str]) -> str:
    if all(PLAIN.fullmatch(word) for word in (*classes, *classes.values())):
        return '"data.labels={' + ", ".join(f"{label}: {name}" for label, name in classes.items()) + '}"'
    mapping = json.dumps(classes, ensure_ascii=False)
    return f"labels: {mapping} into a file of your own, mine/data/<name>.yaml"


def _key(label: str) -> str:
    """Return what labels of one class have in common."""
    word = unicodedata.normalize("NFKC", label).casefold()
    letters = "".join(letter for letter in word if letter.isalnum())
    if not any(letter.isalpha() for letter in letters):  # -1 is not 1
        return word.strip()
    return POLARITY_OF.get(letters, letters)
