"""JSON files of sentexp's own: written whole, so that one which cannot be read was damaged afterwards."""

import json
from pathlib import Path
from typing import Any

from sentexp.errors import UserError


def read_json(file: Path) -> Any:
    """Return what a file in the folder of a run or a sweep holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # of the encoding or of JSON
        raise UserError(
            f"{file} is damaged, by a fault of the disk perhaps: remove {file.parent}, and give the command again."
        ) from None
