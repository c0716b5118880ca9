"""What the garbage collector skips."""

import gc
import sys

from sentexp.system import garbage
from sentexp.system.garbage import freeze_imports


def test_what_is_imported_is_frozen_once(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append("colorsys" in sys.modules))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    garbage._freeze.cache_clear()
    freeze_imports("colorsys")
    freeze_imports("colorsys", "json")  # by now models may be loaded, which must stay in reach of the collector
    assert frozen == [True]
    garbage._freeze.cache_clear()
