"""Files inside installed packages, and where the cache is."""

from pathlib import Path

import pytest

from sentexp.config import PackageFile, load_config
from sentexp.errors import UserError
from sentexp.system.package_files import cache_dir, locate, sha256_of


def test_the_embedded_reviews_are_found_and_proved():
    package = load_config().data.package
    assert package is not None
    assert sha256_of(locate(package)) == package.sha256


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nothing.csv is missing from the package numpy: reinstall it"):
        locate(PackageFile(distribution="numpy", file="numpy/nothing.csv", sha256="0" * 64))


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("SENTEXP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir() == Path("/cache/sentexp")
