"""The Hugging Face hub: one snapshot of safetensors, configuration and table files, as an ordinary local folder."""

from pathlib import Path
from typing import Literal

from sentexp.errors import UserError, require

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
DATA_FILES = ["*.parquet", "*.csv", "*.tsv", "*.jsonl", "*.json"]


def is_local(path: str) -> bool:
    """Tell a local path from a hub id: a hub id is `name` or `owner/name` and nothing of that name exists here."""
    expanded = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    return looks_local or expanded.exists() or expanded.suffix in {".gguf", ".csv", ".tsv", ".jsonl", ".parquet"}


def local_path(key: str, path: str) -> Path:
    """Return an existing local path, or say which key names a missing one."""
    expanded = Path(path).expanduser()
    require(
        expanded.exists(), f"{key}={path} does not exist: pass an existing folder or file, or a hub id as owner/name."
    )
    return expanded


def snapshot(key: str, repo: str, revision: str | None, kind: Literal["model", "dataset"]) -> Path:
    """Download a hub repository (or find it in the hub's cache) and return its folder, named by its commit.

    Raises:
        UserError: the hub cannot be reached, the repository is unknown, or its owner has not granted access.
    """
    from huggingface_hub import snapshot_download
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
    patterns = MODEL_FILES if kind == "model" else DATA_FILES
    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(
            f"{key}={repo} is gated: request access at {page}, then log in with `hf auth login`; or {instead}."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{key}={repo} has no revision {revision}: see {page}; or {instead}.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{key}={repo} is neither a local path nor a {kind} that the hub shows you: check the name at {page}; "
            f"or {instead}."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{key}={repo} is no local path, and the Hugging Face hub cannot be reached from here "
            f"({type(error).__name__}): {instead}, or go online (a gated repository grants access at {page})."
        ) from None
