"""What can be done with each option of `peft`: the facts that errors state, as rows of a table."""

from dataclasses import dataclass, fields

from sentexp.config import VIRTUAL
from sentexp.config.peft_methods import OPTIONS
from sentexp.models.peft_methods import NOT_MERGEABLE, NOT_OVER_ENCODERS, OVER_HQQ, OVER_PACKED_WEIGHTS, OVER_TORCHAO

TYPES = {option: kind for kind, option in OPTIONS.items()}
LORA = ("dora", "lora", "qlora")


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodFacts:
    """What can be done with an option of `peft`.

    `padding_free`: rows are computed without padding. `together`: runs of a sweep train together, or share what they
    compute. `four_bit`: over frozen weights in bitsandbytes' 4 bits; `torchao`: in torchao's 8; `hqq`: in HQQ's 4.
    `merged`: one plain model can be made of it, and so a graph (ONNX). `encoders`: over an encoder.
    """

    option: str
    padding_free: bool
    together: bool
    four_bit: bool
    torchao: bool
    hqq: bool
    merged: bool
    encoders: bool

    @property
    def cells(self) -> list[str]:
        """The row of the table behind the name of the option."""
        return ["yes" if getattr(self, item.name) else "" for item in fields(self)[1:]]


COLUMNS = (
    "padding-free",
    "trains together in a sweep",
    "over nf4, fp4",
    "over torchao's 8 bits",
    "over hqq4",
    "merged, ONNX",
    "encoders",
)
"""The heads of the columns."""


def facts_of(option: str) -> MethodFacts:
    """Return what can be done with an option of `peft` other than `other`, which is as the method it names."""
    kind, always = TYPES.get(option, ""), option in (*LORA, "head", "none")
    return MethodFacts(
        option=option,
        padding_free=kind not in VIRTUAL,
        together=option in (*LORA, "head"),
        four_bit=always or kind in OVER_PACKED_WEIGHTS,
        torchao=always or kind in OVER_TORCHAO,
        hqq=always or kind in OVER_HQQ,
        merged=kind not in NOT_MERGEABLE,
        encoders=kind not in NOT_OVER_ENCODERS,
    )
