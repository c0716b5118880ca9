"""`conf/task/`: what the backbone is asked to do, and the prompts in `conf/template/`."""

import re
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sentexp.config.checks import AUTO, check_ranges, number
from sentexp.config.conf_files import conf_dir
from sentexp.config.target_kind import TargetKind
from sentexp.errors import UserError, first_line, require

TEMPLATE_GROUP = "template"
"""The folder of `conf` whose files `task.template` names: not a group of hydra's, so that a plain key chooses."""


BARE, ASKING = "{text}", "{text}\nSentiment:"
"""Templates of `task=seq_cls`: of encoders, and of decoders, whose last token then reads the question."""


PAIR_SLOT = "{text_pair}"
"""The place of the second text of a pair in a template."""


class HeadInit(Enum):
    """Start of a new head: small normal numbers, the output embeddings of the label words, or what suits the model."""

    auto = "auto"
    normal = "normal"
    label_words = "label_words"


class HeadLoss(Enum):
    """What the head of `task=seq_cls` learns.

    They are classes, classes in their order by cumulative logits, scores, or any number of labels for a text.
    """

    cross_entropy = "cross_entropy"
    ordinal = "ordinal"
    regression = "regression"
    multi_label = "multi_label"

    @property
    def kind(self) -> TargetKind:
        """What is predicted."""
        kinds = {HeadLoss.regression: TargetKind.scores, HeadLoss.multi_label: TargetKind.label_sets}
        return kinds.get(self, TargetKind.classes)


def target_kind(task: "TaskConfig") -> TargetKind:
    """Return what a task predicts."""
    loss = getattr(task, "loss", None)
    return loss.kind if isinstance(loss, HeadLoss) else TargetKind.classes


class AnswerLoss(Enum):
    """What `task=causal_lm` learns from: the answer's tokens, the choice among the label words, or the whole text."""

    answer = "answer"
    label_words = "label_words"
    full = "full"


class PriorCorrection(Enum):
    """What is taken for a prompt's own preference among the labels, and divided out of the probabilities."""

    none = "none"
    contextual = "contextual"
    batch = "batch"


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """What the backbone is asked to do."""

    focal_gamma: float = number(ge=0, note="0 is plain cross-entropy, 2 is usual")
    label_smoothing: float = number(ge=0, lt=1, note="0 is plain cross-entropy, 0.1 is usual")
    r_drop: float = number(ge=0, note="0 reads each batch once")
    neftune_alpha: float = number(ge=0, note="0 adds none, 5 is usual")

    def __post_init__(self) -> None:
        """Check ranges, and that the losses go together."""
        check_ranges(self, "task")
        require(
            self.label_smoothing == 0 or self.focal_gamma == 0,
            f"task.focal_gamma={self.focal_gamma} weighs rows by the probability of their label alone, and "
            f"task.label_smoothing={self.label_smoothing} learns those of all labels: use one of them.",
        )


@dataclass(kw_only=True, slots=True)
class SequenceClassification(TaskConfig):
    """`task=seq_cls`: a head over what the model makes of the framed text (PEFT's `SEQ_CLS`).

    `auto` stays until the model is known.
    """

    template: str
    head_init: HeadInit
    loss: HeadLoss

    def __post_init__(self) -> None:
        """The text must appear once, and an ordinal head starts at no words."""
        TaskConfig.__post_init__(self)
        require(
            self.loss is HeadLoss.cross_entropy or self.head_init is not HeadInit.label_words,
            "task.head_init=label_words gives each class a row of the head, for one answer among all, and task.loss="
            f"{self.loss.name} answers otherwise: leave it auto.",
        )
        if self.template != AUTO:
            _require_text_slot("task.template", self.template)
            _require_placeholders("task.template", self.template, "text", "text_pair")


@dataclass(kw_only=True, slots=True)
class PromptTemplate:
    """A prompt for `task=causal_lm`: its texts, and the Jinja chat template that joins them.

    `{labels}` is replaced by the label words ("negative or positive") and `{text}` by the text. `chat_template` gets
    the messages of the roles system, user and assistant, as in transformers; null is the tokenizer's own.
    """

    user: str
    system: str = ""
    chat_template: str | None = None

    def __post_init__(self) -> None:
        """The text must appear once."""
        _require_text_slot("user in task.template", self.user)
        _require_placeholders("user in task.template", self.user, "text", "labels", "text_pair")
        _require_placeholders("system in task.template", self.system, "labels")


@dataclass(kw_only=True, slots=True)
class CausalLM(TaskConfig):
    """`task=causal_lm`: the model reads an instruction and a text, and answers with a label (PEFT's `CAUSAL_LM`).

    `template` may also be the template itself, as a mapping; `auto` stays until the tokenizer is known.
    """

    template: Any
    system: str | None
    label_words: Any
    loss: AnswerLoss
    length_normalization: bool
    calibration: PriorCorrection
    shots: int = number(ge=0)
    shots_seed: int = number(ge=0)
    generate: bool

    def __post_init__(self) -> None:
        """Read the template, and check the label words."""
        TaskConfig.__post_init__(self)
        if self.template != AUTO:
            self.template = load_template(self.template)
        _require_placeholders("task.system", self.system or "", "labels")
        self.label_words = _label_words(self.label_words)
        require(
            self.loss is not AnswerLoss.full or self.focal_gamma == 0,
            f"task.focal_gamma={self.focal_gamma} weighs answers, and task.loss=full learns the whole text: use "
            "task.loss=answer or label_words.",
        )
        for key, does in (("label_smoothing", "spreads the target over"), ("r_drop", "compares the probabilities of")):
            require(
                self.loss is AnswerLoss.label_words or getattr(self, key) == 0,
                f"task.{key}={getattr(self, key)} {does} the labels, and task.loss={self.loss.name} learns tokens: use "
                "task.loss=label_words, or task=seq_cls.",
            )


def task_name(task: TaskConfig) -> str:
    """Return the name of a task: seq_cls or causal_lm."""
    return "causal_lm" if isinstance(task, CausalLM) else "seq_cls"


def load_template(given: object) -> PromptTemplate:
    """Return a template from its name in `conf/template`, a YAML file, a mapping, or a string that holds `{text}`.

    Raises:
        UserError: there is none by that name, it has a wrong key, or it has no place for the text.
    """
    if isinstance(given, PromptTemplate):
        return given
    if isinstance(given, str):
        if "{text}" in given:
            return replace(load_template("completion"), user=given)
        given = _read_template(given)
    legal = [item.name for item in fields(PromptTemplate)]
    require(
        isinstance(given, dict)
        and "user" in given
        and set(given) <= set(legal)
        and all(isinstance(value, str) or (key == "chat_template" and value is None) for key, value in given.items()),
        f"task.template={given} must hold user (with {{text}} in it), and may hold system and chat_template, as texts.",
    )
    return PromptTemplate(**given)  # type: ignore[arg-type]


def _read_template(given: str) -> object:
    """Return what the file of a name, or a file of the user's own, holds."""
    folder, own = conf_dir() / TEMPLATE_GROUP, Path(given).expanduser()
    names = [AUTO, *sorted(file.stem for file in folder.glob("*.yaml"))]
    require(
        given in names or (own.suffix in (".yaml", ".yml") and own.is_file()),
        f"task.template={given!r} must be one of {', '.join(names)}, a YAML file that is there, or a string that "
        "holds {text}.",
    )
    try:
        return OmegaConf.to_container(OmegaConf.load(folder / f"{given}.yaml" if given in names else own))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"task.template={own} is not a YAML file: {first_line(error)}.") from None


def _require_text_slot(key: str, template: str) -> None:
    require(template.count("{text}") == 1, f"{key}={template!r} must hold {{text}} exactly once.")
    before, _, behind = template.partition("{text}")
    require(
        behind.count(PAIR_SLOT) <= 1 and PAIR_SLOT not in before,
        f"{key}={template!r} may hold {PAIR_SLOT} once, behind {{text}}.",
    )


def _require_placeholders(key: str, text: str, *legal: str) -> None:
    unknown = [name for name in re.findall(r"\{(\w+)\}", text) if name not in legal]
    allowed = " and ".join(f"{{{name}}}" for name in legal)
    require(not unknown, f"{key}={text!r} holds {{{''.join(unknown[:1])}}}, which has no meaning there: use {allowed}.")


def _label_words(given: Any) -> list[str] | dict[str, str] | None:
    """Return the words, and the labels of a mapping, as strings; None stays None."""
    words = list(given.values()) if isinstance(given, dict) else given
    if words is None:
        return None
    require(
        isinstance(words, list) and not any(isinstance(word, bool) for word in words),
        f"task.label_words={given} must be texts, one for each label: a word such as true is quoted, as in "
        "\"task.label_words=['true','false']\".",
    )
    texts = [str(word).strip() for word in words]
    require(
        all(texts) and len(set(texts)) == len(texts),
        f"task.label_words={given} must be a different word for each label, as a list in the order of the labels or a "
        "mapping such as {negative: bad, positive: good}; null is the labels themselves.",
    )
    return dict(zip(map(str, given), texts, strict=True)) if isinstance(given, dict) else texts
