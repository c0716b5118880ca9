"""Why a run failed, in one sentence."""

import errno

from sentexp.errors import UserError

BROKEN = (errno.EROFS, errno.EIO)
"""What a disk that fails answers, for files that are open as well, whose names such an error lacks."""


def explain_failure(error: Exception, output_dir: str) -> str | None:
    """Return a sentence for why a run failed; None where only a traceback tells."""
    from sentexp.tracking.client import is_disk_full

    if isinstance(error, UserError):
        return str(error)
    if is_disk_full(error):
        where = getattr(error, "filename", None) or output_dir
        return f"No space is left to write {where}: free some and run the same command, which resumes."
    if isinstance(error, OSError) and error.filename:
        return (
            f"{error.filename} cannot be used ({error.strerror}): SENTEXP_CACHE names the folder of the cache, "
            "output_dir that of the runs."
        )
    if isinstance(error, OSError) and error.errno in BROKEN:
        return f"{output_dir} cannot be used ({error.strerror}): repair its disk; the same command then resumes."
    return None
