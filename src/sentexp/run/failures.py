"""Why a run failed, in one sentence."""

from sentexp.errors import UserError


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
    return None
