"""Optuna's study of a search: where it is kept, who proposes, who prunes, and what is known of its trials."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock, Timeout

from sentexp.config import Sampler, SearchConfig, TrackingBackend, TrackingConfig
from sentexp.config.metric_names import is_better_higher
from sentexp.errors import UserError, require
from sentexp.tracking.client import SQLITE
from sentexp.tracking.provenance import mask_uri
from sentexp.tracking.store import store_uri

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

T = TypeVar("T")
FILE = "optuna.db"
PATIENCE = 120
"""Seconds to wait for a storage that another process has locked."""


def storage_url(search: SearchConfig, tracking: TrackingConfig) -> str:
    """Return `hydra.sweeper.storage`, else a file beside MLflow's SQLite file, else one in the current folder."""
    if search.storage is not None:
        return search.storage
    uri = store_uri(tracking) if tracking.backend is not TrackingBackend.none else ""
    beside = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else Path()
    return f"{SQLITE}{(beside / FILE).absolute()}"


def open_study(url: str, name: str, objectives: list[str]) -> "Study":
    """Return the study of this name, created where it is missing.

    Args:
        url: of the storage.
        name: of the study.
        objectives: metrics; losses, errors and costs are minimised, and the rest is maximised.

    Raises:
        UserError: the storage cannot be used, or Optuna is not installed.
    """
    try:
        import optuna
        from optuna.study import StudyDirection
    except ModuleNotFoundError as error:
        require(error.name != "optuna", "hydra/sweeper=optuna needs Optuna: pip install 'sentexp[search]'.")
        raise

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def connect() -> "Study":
        arguments = {"connect_args": {"timeout": PATIENCE}} if url.startswith(SQLITE) else None
        storage = optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        directions = [StudyDirection.MAXIMIZE if is_maximised(name) else StudyDirection.MINIMIZE for name in objectives]
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True, directions=directions)

    return call_storage(connect, url)


def call_storage(action: Callable[[], T], url: str) -> T:
    """Return what the action returns; what the storage says against it becomes a sentence."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return action()
    except (StorageInternalError, SQLAlchemyError, OSError, ImportError, RuntimeError) as error:
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The search's storage hydra.sweeper.storage={mask_uri(url)} cannot be used ({reason[:200]}): name an "
            "SQLAlchemy URL such as sqlite:///optuna.db, of a file that can be written."
        ) from error


@contextmanager
def only_one_search(url: str, name: str) -> Iterator[None]:
    """Keep a second process off a search in a file of this machine.

    Raises:
        UserError: another process runs the same search.
    """
    if not url.startswith(SQLITE):
        yield
        return
    file = Path(url.removeprefix(SQLITE))
    try:
        with FileLock(file.with_name(f".{file.name}.{name}.lock"), timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"The same search is in progress in another process (its trials are in {file}): wait for it, or use "
            "hydra.sweeper.n_jobs to run several trials at once."
        ) from None


def build_sampler(search: SearchConfig, number: int) -> "BaseSampler":
    """Return who proposes the trial of this number.

    Each trial has a random state of its own, from the seed and its number: a search that was killed proposes what it
    would have proposed without that.
    """
    import numpy as np
    from optuna import samplers

    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="optuna")  # new options of samplers
        if search.sampler is Sampler.tpe:
            return samplers.TPESampler(seed=seed, constant_liar=search.n_jobs > 1)
        if search.sampler is Sampler.gp:
            return samplers.GPSampler(seed=seed)
    return samplers.RandomSampler(seed=seed)  # a grid's values are given


def is_maximised(objective: str) -> bool:
    """Tell whether an objective is maximised: a metric of which more is better, and no cost."""
    return objective.startswith("validation/") and is_better_higher(objective)
