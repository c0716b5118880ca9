"""The Financial PhraseBank: four files that nest, one for each level of agreement between the annotators."""

import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import AGREEMENT_LEVELS, PhraseBank
from sentexp.data.sources.layout import SLICE, dataset_root
from sentexp.data.tables import read_lines
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    import pyarrow as pa

AGREEMENT_FILES = {
    level: f"Sentences_{'AllAgree' if level == 'all' else level + 'Agree'}.txt" for level in AGREEMENT_LEVELS
}
LARGEST_MEMBER = 1 << 27


def phrase_bank(data: PhraseBank) -> "pa.Table":
    """Return all sentences, each with the highest level of agreement whose file holds it; the four files nest."""
    import pyarrow as pa

    lines = {level: _agreement_lines(data, name) for level, name in AGREEMENT_FILES.items()}
    held = {level: Counter(level_lines) for level, level_lines in lines.items()}
    seen = Counter[str]()
    sentences = []
    for number, line in enumerate(lines[AGREEMENT_LEVELS[0]], start=1):
        text, at, label = line.rpartition("@")
        require(
            bool(at),
            f"Line {number} of {AGREEMENT_FILES[AGREEMENT_LEVELS[0]]} of data.path={data.path} reads {line[:60]!r}: it "
            "must be text@label.",
        )
        seen[line] += 1  # a sentence that is here twice may be once in a higher level
        level = [level for level in AGREEMENT_LEVELS if held[level][line] >= seen[line]][-1]
        sentences.append((text, label, level))
    require(bool(sentences), f"data.path={data.path} has no sentences in its files: fetch the archive again.")
    columns = [pa.array(values, pa.large_string()) for values in zip(*sentences, strict=True)]
    return pa.Table.from_arrays(columns, names=["text", "label", SLICE + "agreement"])


def _agreement_lines(data: PhraseBank, name: str) -> list[str]:
    """Return the lines of one of the archive's files, from a folder, from a zip, or from a folder with a zip."""
    root = dataset_root(data, ["*.zip", "*Agree.txt"])
    if root.is_dir():
        plain = sorted(root.rglob(name))
        if plain:
            with plain[0].open("rb") as stream:
                return read_lines(stream, "latin-1")
        archives = sorted(root.rglob("*.zip"))
    else:
        archives = [root]
    require(
        bool(archives),
        f"data.path={data.path} has no {name} and no zip that could hold it: pass the folder of the four "
        "Sentences_*Agree.txt, or the archive FinancialPhraseBank-v1.0.zip.",
    )
    try:
        with zipfile.ZipFile(archives[0]) as archive:
            return _member_lines(archive, name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archives[0]} is not a whole zip ({error}): fetch it again.") from None


def _member_lines(archive: zipfile.ZipFile, name: str) -> list[str]:
    """Read a member in memory; nothing is ever extracted."""
    members = [m for m in archive.infolist() if Path(m.filename).name == name and "__MACOSX" not in m.filename]
    require(
        len(members) == 1,
        f"{archive.filename} holds {len(members)} files of the name {name}: it must hold exactly one.",
    )
    parts = Path(members[0].filename.replace("\\", "/")).parts
    require(
        ".." not in parts and not Path(members[0].filename).is_absolute(),
        f"{archive.filename} holds {members[0].filename}, which points out of the archive: it is not trusted.",
    )
    require(
        members[0].file_size < LARGEST_MEMBER,
        f"{archive.filename} holds {name} of {members[0].file_size:,} bytes: the real one is below one million.",
    )
    with archive.open(members[0]) as stream:
        return read_lines(stream, "latin-1")  # type: ignore[arg-type]
