"""What the garbage collector skips."""

import gc
import sys
from importlib import import_module

import pytest

from sentexp.system import garbage
from sentexp.system.garbage import freeze_imports, nothing_collected


def test_what_is_imported_is_frozen_once(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append("colorsys" in sys.modules))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    garbage._freeze.cache_clear()
    freeze_imports("colorsys")
    freeze_imports("colorsys", "json")  # by now models may be loaded, which must stay in reach of the collector
    assert frozen == [True]
    garbage._freeze.cache_clear()


@pytest.mark.parametrize("was_on", [True, False])
def test_nothing_is_collected_while_libraries_are_imported(was_on):
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with nothing_collected():
            assert not gc.isenabled()
        assert gc.isenabled() == was_on
        with pytest.raises(ModuleNotFoundError), nothing_collected():
            import_module("no_such_library")
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()
