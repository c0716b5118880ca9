"""What a finished run proposes: to use it, and the sweep around it."""

from typing import TYPE_CHECKING

from sentexp.config import Config, Lora, Strategy, Untuned
from sentexp.tracking.next_steps import place_words, predict_example, sentexp_command
from sentexp.tracking.provenance import given_words

if TYPE_CHECKING:
    from sentexp.run.result import Result


def next_commands(result: "Result", config: Config) -> list[str]:
    """Return how a run is used, and the sweep around it; of a run of several processes there is none."""
    place = place_words(config.tracking, config.output_dir)
    run = f"run={result.identity[:8]}"
    pairs = getattr(config.data, "text_pair", None) is not None
    commands = [*predict_example(run, place, pairs), sentexp_command("serve", run, *place)]
    words = given_words(in_sweep=False)
    if words is not None and config.trainer.strategy is Strategy.single:
        key, values = _axis(config)
        replaced = {key, "sweep.rerun"} | ({"optim.lr_scale"} if key == "optim.lr" else set())  # it is in the rate
        others = [word for word in words if word.lstrip("+").partition("=")[0] not in replaced]
        commands.append(sentexp_command("--multirun", f"{key}={values}", *others))
    return commands


def _axis(config: Config) -> tuple[str, str]:
    """Return the key that is worth a sweep first, and its values: those around the present one."""
    if isinstance(config.peft, Untuned):
        return "peft", "none,lora"
    if isinstance(config.peft, Lora):
        rank = config.peft.r * 2 if config.peft.init == "orthogonal" else max(2, config.peft.r)  # all even
        return "peft.r", f"{rank // 2},{rank},{rank * 2}"
    rate = config.optim.lr
    return "optim.lr", ",".join(f"{value:.3g}" for value in (rate / 2, rate, rate * 2))
