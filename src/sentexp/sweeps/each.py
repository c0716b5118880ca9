"""`--multirun` of the commands that train nothing: the command once for each combination, as hydra does it."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from sentexp.config.explain import require_values
from sentexp.errors import require


class EachSweeper(BasicSweeper):
    """Hydra's own sweeper, which refuses an axis without values: it would do nothing, and say nothing."""

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return the combinations.

        Raises:
            UserError: an override without values, or without an end of them.
        """
        for override in overrides:
            require_values(override)
            require(
                not override.is_interval_sweep(),
                f"{override.input_line} has no end of values: give some, such as {override.key_or_group}=1,2,3.",
            )
        batches: list[list[list[str]]] = BasicSweeper.split_arguments(overrides, max_batch_size)
        return batches
