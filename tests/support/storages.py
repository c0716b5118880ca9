"""Storages of frozen weights whose package is an extra: tests of them are skipped where it is not installed."""

from importlib.util import find_spec

import pytest

from sentexp.config import Quantization

EXTRA = [storage.name for storage in Quantization if storage.package in ("torchao", "hqq")]


def over(storage, *values, marks=(), **others):
    """Return a parameter of a test that needs the package of a storage.

    Args:
        storage: its name.
        values: of the parameter; the name of the storage where there are none.
        marks: that the test has besides.
        others: of pytest.param.
    """
    package = Quantization[storage].package
    missing = pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: pip install '.[{package}]'")
    return pytest.param(*(values or (storage,)), marks=[missing, *marks], **{"id": storage, **others})


STORAGES = [over(name) for name in EXTRA]
