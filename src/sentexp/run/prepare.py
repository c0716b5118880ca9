"""`python -m sentexp prepare`: fetch, convert and tokenise only, so that a run can start without a network."""

from sentexp.config import Config
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.system.console import say


def prepare(config: Config) -> None:
    """Fetch, convert and tokenise what a run of this configuration needs.

    Raises:
        UserError: anything in the configuration or the data that the user can fix.
    """
    inputs = prepare_inputs(resolve_inputs(config))
    say(f"The backbone is in {inputs.backbone.folder}; a run of this configuration needs no network.")
