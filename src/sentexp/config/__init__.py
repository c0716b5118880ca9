"""Every structured configuration: the types behind `conf/`, their ranges and the rules between their fields.

Each file is named for a group of `conf/` or for what else it configures. The YAML gives the values and says what a key
means; the dataclass gives its type and its range. Standard library, omegaconf and hydra's ConfigStore only, so that a
wrong key or value is refused before torch is imported.
"""

from sentexp.config.checks import AUTO, check_measure
from sentexp.config.commands import (
    CompareConfig,
    EvaluateConfig,
    EvaluatedRows,
    EvaluatedSplit,
    ExportConfig,
    ExportFormat,
    ExportType,
    FinishedRun,
    PredictConfig,
    ReadingRun,
    RegisterConfig,
    ServeConfig,
    TableFormat,
)
from sentexp.config.conf_files import conf_dir
from sentexp.config.data import (
    AGREEMENT_LEVELS,
    RATING_LIMIT,
    BadRows,
    DataConfig,
    Multilingual,
    PackageTable,
    PhraseBank,
    RatedTexts,
    Sampling,
    Splits,
    TableData,
)
from sentexp.config.labels import require_class_name
from sentexp.config.model import Attention, ModelConfig, PackageFile, RandomWeights
from sentexp.config.optim import OptimConfig, OptimizerName, Schedule
from sentexp.config.peft import (
    IA3,
    Bias,
    FullFineTuning,
    HeadOnly,
    Lora,
    PeftConfig,
    Quantization,
    Untuned,
    method_name,
)
from sentexp.config.registry import from_conf, load_config, register_schemas
from sentexp.config.run import BOOKKEEPING, Config, flatten
from sentexp.config.sweep import Pruner, Sampler, SearchConfig, SweepConfig
from sentexp.config.task import (
    TEMPLATE_GROUP,
    AnswerLoss,
    CausalLM,
    HeadInit,
    PriorCorrection,
    PromptTemplate,
    SequenceClassification,
    TaskConfig,
    load_template,
    task_name,
)
from sentexp.config.tracking import TrackingBackend, TrackingConfig
from sentexp.config.trainer import Precision, Strategy, TrainerConfig

__all__ = [
    "AGREEMENT_LEVELS",
    "AUTO",
    "BOOKKEEPING",
    "IA3",
    "RATING_LIMIT",
    "TEMPLATE_GROUP",
    "AnswerLoss",
    "Attention",
    "BadRows",
    "Bias",
    "CausalLM",
    "CompareConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "EvaluatedRows",
    "EvaluatedSplit",
    "ExportConfig",
    "ExportFormat",
    "ExportType",
    "FinishedRun",
    "FullFineTuning",
    "HeadInit",
    "HeadOnly",
    "Lora",
    "ModelConfig",
    "Multilingual",
    "OptimConfig",
    "OptimizerName",
    "PackageFile",
    "PackageTable",
    "PeftConfig",
    "PhraseBank",
    "Precision",
    "PredictConfig",
    "PriorCorrection",
    "PromptTemplate",
    "Pruner",
    "Quantization",
    "RandomWeights",
    "RatedTexts",
    "ReadingRun",
    "RegisterConfig",
    "Sampler",
    "Sampling",
    "Schedule",
    "SearchConfig",
    "SequenceClassification",
    "ServeConfig",
    "Splits",
    "Strategy",
    "SweepConfig",
    "TableData",
    "TableFormat",
    "TaskConfig",
    "TrackingBackend",
    "TrackingConfig",
    "TrainerConfig",
    "Untuned",
    "check_measure",
    "conf_dir",
    "flatten",
    "from_conf",
    "load_config",
    "load_template",
    "method_name",
    "register_schemas",
    "require_class_name",
    "task_name",
]
