"""The Hugging Face hub: snapshots of models and of data sets with files of their own, and tables through `datasets`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sentexp.errors import UserError, first_line, require

if TYPE_CHECKING:
    import pyarrow as pa

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")
LOCAL_ENDINGS = {".gguf", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".xlsx", ".ods"} | {
    ".gz", ".bz2", ".xz", ".zst", ".zip",
}  # fmt: skip
"""Of paths that are no hub ids, whether they exist or not."""
Kind = Literal["model", "dataset"]


def is_local(path: str) -> bool:
    """Tell a local path from a hub id: a hub id is `name` or `owner/name` and nothing of that name exists here."""
    expanded = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path or has_magic(path)
    return looks_local or expanded.exists() or expanded.suffix.lower() in LOCAL_ENDINGS


def local_path(key: str, path: str) -> Path:
    """Return an existing local path, or say which key names a missing one."""
    expanded = Path(path).expanduser()
    require(
        expanded.exists(), f"{key}={path} does not exist: pass an existing folder or file, or a hub id as owner/name."
    )
    return expanded


def snapshot(key: str, repo: str, revision: str | None, kind: Kind, files: Sequence[str] = MODEL_FILES) -> Path:
    """Download files of a hub repository (or find them in the hub's cache) and return its folder, named by its commit.

    Args:
        key: the configuration key, for messages.
        repo: `owner/name`.
        revision: branch, tag or commit; None is the main branch.
        kind: of repository.
        files: patterns of the files that are wanted.

    Raises:
        UserError: the hub cannot be reached, the repository is unknown, or its owner has not granted access.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(key, repo, revision, kind):
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=list(files)))


def hub_splits(key: str, repo: str, subset: str | None, revision: str | None) -> list[str]:
    """Return the names of the splits of a data set on the hub; raises as `hub_tables`."""
    from datasets import get_dataset_split_names

    with _hub_errors(key, repo, revision, "dataset"):
        try:
            return list(get_dataset_split_names(repo, subset, revision=revision))
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{key}={repo} does not tell its splits ({first_line(error)}): name a subset with "
                "data.subset, or the splits with data.splits."
            ) from None


def hub_tables(
    key: str, repo: str, subset: str | None, revision: str | None, splits: Sequence[str]
) -> dict[str, "pa.Table"]:
    """Return splits of a data set on the hub by name, as `datasets` reads them without any script of its owner.

    A column of classes holds their numbers: the order of `data.labels` says what they mean.

    Raises:
        UserError: as `snapshot`, or the data set has no such subset or split, or needs a script.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    from sentexp.system.package_files import cache_dir

    tables = {}
    with _hub_errors(key, repo, revision, "dataset"):
        for split in splits:
            try:
                rows = load_dataset(
                    repo, subset, split=split, revision=revision, cache_dir=str(cache_dir() / "datasets")
                )
            except (ValueError, RuntimeError, DatasetGenerationError) as error:
                reason = first_line(error.__cause__ or error).rstrip(".")
                raise UserError(
                    f"{key}={repo} has no split {split!r} that can be read ({reason[:300]}): name a subset with "
                    "data.subset, the splits with data.splits, or pass a local copy with data.path=<folder>."
                ) from None
            tables[split] = rows.with_format("arrow")[:]
    return tables


@contextmanager
def _hub_errors(key: str, repo: str, revision: str | None, kind: Kind) -> Iterator[None]:
    """Turn what the hub's libraries raise into a sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    instead = f"pass a local copy with {key}=<folder>"
    unknown: tuple[type[Exception], ...] = (RepositoryNotFoundError, HFValidationError)
    if kind == "dataset":
        from datasets.exceptions import DatasetNotFoundError

        unknown += (DatasetNotFoundError,)
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{key}={repo} is gated: request access at {page}, then log in with `hf auth login`; or {instead}."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{key}={repo} has no revision {revision}: see {page}; or {instead}.") from None
    except unknown:
        raise UserError(
            f"{key}={repo} is neither a local path nor a {kind} that the hub shows you: check the name at {page}; "
            f"or {instead}."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{key}={repo} is not a local path, and the Hugging Face hub cannot be reached from here "
            f"({type(error).__name__}): {instead}, or go online (a gated repository grants access at {page})."
        ) from None
