"""The table at the end of a soak."""

from types import SimpleNamespace

import soak


def report(duration, *properties):
    return SimpleNamespace(duration=duration, user_properties=list(properties))


def test_cases_of_one_kind_are_one_line():
    reports = [report(1.4, ("soak", [1, "files", "refused"])), report(2.2, ("soak", [1, "files", "refused"]))]
    reports += [report(9.0, ("other", 1)), report(60.0, ("soak", [1000, "tables", "700 read"]))]
    assert soak.table(reports).splitlines()[2:] == ["| 2 files | refused | 4 |", "| 1,000 tables | 700 read | 60 |"]
    assert soak.table(reports[2:3]) == ""


def test_a_tenth_is_never_nothing(monkeypatch):
    monkeypatch.setattr(soak, "SHARE", 0.1)
    assert (soak.share_of(10_000), soak.share_of(8, 3), soak.share_of(2)) == (1000, 3, 1)
