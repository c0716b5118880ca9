"""`python -m sentexp push`: the folder of a run's weights, with its card, as a model on the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager

from sentexp.config import PushConfig
from sentexp.errors import UserError
from sentexp.inference.run_lookup import Finished, chosen_run
from sentexp.system.console import say
from sentexp.system.hub import is_local

TRANSPORT = "TransportError"
"""What the hub's library for requests raises without a connection, whichever of its releases is installed."""
UNAUTHORISED, FORBIDDEN = 401, 403
LOGIN = "log in with `hf auth login`, or put a token that may write into the environment variable HF_TOKEN"


def push(config: PushConfig) -> str:
    """Upload the weights of a run to a model on the hub, made where it is missing, and return its address.

    The token is that of the hub's own login, or of the environment; it is shown nowhere.

    Raises:
        UserError: there is no such run, nobody is logged in, the owner may not write there, or the hub is out of reach.
    """
    assert config.to is not None
    finished = chosen_run(config)
    from huggingface_hub import HfApi

    api, folder = HfApi(), finished.trained.folder
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    say(f"run {finished.name}: {folder.name}, {size:,.1f} MiB, to {config.to}")
    if where := _base_without_hub(finished):
        say(
            f"Its base model is {where}, which is not on the hub: others need it as well, and name its place with "
            "base=<folder>."
        )
    with _hub_errors(config.to):
        page = api.create_repo(config.to, private=config.private, exist_ok=True)
        api.upload_folder(
            repo_id=config.to,
            folder_path=folder,
            commit_message=f"Upload run {finished.trained.identity} of sentexp",
        )
    say(f"uploaded: {page}", str(page))
    return str(page)


def _base_without_hub(finished: Finished) -> str:
    """Return the name of the base model where one is needed and the hub does not have it; else nothing."""
    model = finished.trained.model
    if finished.trained.whole or (model.path is not None and not is_local(model.path)):
        return ""
    return model.title


@contextmanager
def _hub_errors(to: str) -> Iterator[None]:
    """Turn what the hub's library raises into a sentence; its own may hold the headers of a request."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"to={to}: nobody is logged in at the hub: {LOGIN}.") from None
    except HFValidationError:
        raise UserError(f"to={to} is not a name that the hub takes: give to=<owner>/<name>.") from None
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code == UNAUTHORISED:
            raise UserError(f"to={to}: the hub does not know who is asking: {LOGIN}.") from None
        if code == FORBIDDEN:
            raise UserError(
                f"to={to}: the hub does not let you write there: name a model of your own, or use a token with the "
                "right to write."
            ) from None
        raise UserError(f"to={to}: the hub refuses the upload (status {code}): try again later.") from None
    except UnicodeEncodeError:  # a header takes ASCII alone; the error holds the token
        raise UserError(f"to={to}: the token holds characters that no token has: {LOGIN}.") from None
    except Exception as error:
        if not isinstance(error, OSError) and TRANSPORT not in {kind.__name__ for kind in type(error).__mro__}:
            raise
        raise UserError(
            f"to={to}: the hub cannot be reached from here ({type(error).__name__}): go online (and unset "
            "HF_HUB_OFFLINE); the same command uploads what is missing."
        ) from None
