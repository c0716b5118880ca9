"""Archives in pieces: read as one, and only what is proved."""

import io
import zipfile
from dataclasses import replace

import pytest

from sentexp.config import PackageFile
from sentexp.errors import UserError
from sentexp.system.archives import JoinedFiles, unpack
from sentexp.system.package_files import sha256_of

TEXTS = {"model/config.json": b"{}" * 700, "model/sub/config.json": b"other", "model/weights": bytes(range(256)) * 40}


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """Return the pieces of an archive, each in an installed distribution, and the digests of its members."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in TEXTS.items():
            archive.writestr(name, content)
    whole, site = held.getvalue(), tmp_path / "site"
    found = []
    for number, start in enumerate(range(0, len(whole), len(whole) // 3)):
        metadata = site / f"part_{number}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: part-{number}\nVersion: 1.0\n")
        file = site / f"piece.{number}"
        file.write_bytes(whole[start : start + len(whole) // 3])
        found.append(PackageFile(distribution=f"part-{number}", file=file.name, sha256=sha256_of(file)))
    monkeypatch.syspath_prepend(site)
    assert len(found) > 2
    return found, site


@pytest.fixture
def members(tmp_path):
    """Return the digests of two members."""
    digests = {}
    for name in ("model/config.json", "model/weights"):
        (tmp_path / "member").write_bytes(TEXTS[name])
        digests[name] = sha256_of(tmp_path / "member")
    return digests


def test_files_are_read_as_one(tmp_path):
    parts = [b"abc", b"", b"defgh", b"i"]
    for number, part in enumerate(parts):
        (tmp_path / str(number)).write_bytes(part)
    raw = JoinedFiles([tmp_path / str(number) for number in range(len(parts))])
    with io.BufferedReader(raw, 4) as joined:
        assert joined.read() == b"abcdefghi"
        for start, count in ((0, 9), (2, 3), (3, 5), (8, 4), (9, 1)):
            joined.seek(start)
            assert joined.read(count) == b"abcdefghi"[start : start + count]
        assert joined.seek(-2, io.SEEK_END) == 7
        assert joined.read() == b"hi"
        joined.seek(1)
        joined.seek(3, io.SEEK_CUR)
        assert (joined.read(1), joined.tell()) == (b"e", 5)


def test_members_are_unpacked_under_their_last_names(pieces, members, tmp_path):
    (tmp_path / "out").mkdir()
    unpack(pieces[0], members, tmp_path / "out")
    found = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert found == {"config.json": TEXTS["model/config.json"], "weights": TEXTS["model/weights"]}


def test_a_piece_that_was_changed_is_refused_before_it_is_read(pieces, members, tmp_path, monkeypatch):
    found, site = pieces
    (site / "piece.1").write_bytes(b"changed")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(UserError, match=r"piece.1 has the SHA-256 .* so it is not trusted"):
        unpack(found, members, tmp_path)


def test_a_member_that_is_another_is_refused(pieces, members, tmp_path):
    with pytest.raises(UserError, match=r"model/weights has the SHA-256 .*, not 0+ as configured: not trusted"):
        unpack(pieces[0], members | {"model/weights": "0" * 64}, tmp_path)


def test_packages_that_are_missing_are_named_at_once(pieces, members, tmp_path):
    found = [replace(piece, distribution=f"lost-{number}") for number, piece in enumerate(pieces[0][:2])]
    with pytest.raises(UserError, match=r"The packages lost-0, lost-1 are not installed.* install --no-deps lost-0 l"):
        unpack([*found, *pieces[0][2:]], members, tmp_path)
