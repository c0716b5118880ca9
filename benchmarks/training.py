"""Training and evaluation: rows per second of sentexp, of transformers' Trainer with PEFT, of TRL, and of the limit.

    python benchmarks/training.py                  # both tasks on the embedded model, LoRA; half an hour on two cores
    python benchmarks/training.py --memory         # the same, and each arm once in a process of its own for its memory
    python benchmarks/training.py --profile        # where the time of a step goes, padded and not; three minutes
    python benchmarks/training.py --four-bit       # LoRA against QLoRA in sentexp
    python benchmarks/training.py --model minilm modernbert-base --batch-size 16 64   # encoders, without padding too

All arms are in one process and take turns: in each round they train on the same rows, the same tokens, with the same
adapter (rank 16, alpha 32, all linear layers, AdamW at 5e-4), then evaluate the same rows; a first round warms up.
Every turn loads its model anew. arms.py says what an arm is. The limit is the products with frozen weights alone: those
that sentexp's batches need, in its precision. Ratios are those of a round, and the medians of these. Tokens are those
of the rows, padding left out; the beginning that all prompts share is counted for each row.

Encoders classify only. minilm is the embedded one, modernbert-base random weights in the shape of ModernBERT base, with
a vocabulary that is learned from the rows, as below. Trainer trains the same adapter and the same modules of the head.

Rows are SST-2's, from ../shared/data/sst2 beside the checkout or from --data, else the embedded reviews. TRL comes with
`pip install --constraint constraints.txt -e '.[benchmarks]'`.

On a GPU the models are random weights in the shapes of Llama 3.2 1B and Llama 2 7B, with a vocabulary of 8,192 that is
learned from the rows (11.8 tokens in a training row of SST-2, 11.5 with that of SmolLM2) under the output matrix of the
real one; LoRA and QLoRA; 16 and 64 rows. That is 16 pairs of tables and a load of the model for each turn: name some of
them with --model, --peft, --batch-size and --task. An arm that runs out of memory is left out. Utilisation is the
limit's operations, padding and adapters not among them, by the peak of the device. The code was run with `--model tiny`
on the CPU; on a GPU it has not been run.

Writes training_<task>_<device>.json beside this (of encoders, training_encoders_<device>.json; of --four-bit,
training_four_bit_<device>.json; of --profile, training_profile_<device>.txt).
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import lightning as L  # noqa: N812 (the library's own abbreviation)
import numpy as np
import torch
import transformers
from arms import ALPHA, LIMIT, OURS, RANK, RATE, TRIED, Arm, Ground, Limit, Rows, Sentexp, Turn, arms, take, tuned
from rich.console import Console
from rich.table import Table
from tokenizers.processors import TemplateProcessing
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from sentexp.config import load_config
from sentexp.data.splits import load_examples
from sentexp.errors import OutOfMemory
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.system.device import choose_device, describe
from sentexp.tracking.provenance import library_versions

HERE = Path(__file__).parent
SST2 = HERE.parents[1] / "shared" / "data" / "sst2"
DEVICE = choose_device("auto")
TASKS = ("seq_cls", "causal_lm")
EMBEDDED = "smollm2_135m"
MODERNBERT: dict[str, dict[str, Any]] = {
    "modernbert-base": {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22},
    "modernbert-tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
}
ENCODERS = ("minilm", *MODERNBERT)
SHAPES: dict[str, dict[str, Any]] = {
    "llama3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_000,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8_192,
    },
}
VOCABULARY = 8_192
PEAKS = {"H100": 989.0, "H200": 989.0}
"""TFLOP/s of dense bfloat16 products, by a part of the device's name: of the SXM modules, from NVIDIA's data sheets."""
GROUPS = {
    "products with weights and adapters": ("aten::mm", "aten::addmm", "aten::linear"),
    "attention": ("aten::bmm", "softmax", "attention", "flash", "varlen"),
    "moving, joining and converting": ("copy_", "cat", "index", "embedding", "aten::fill_", "aten::zero_", "gather"),
    "other operations": ("aten::",),
    "Python within autograd and the optimizer": ("",),
}
"""Parts of the names of operations; an operation is of the first group that has one."""
SHOWN = 25
COLUMNS = ("", "rows/s", "(quartiles)", "tokens/s", "sentexp is", "of the limit", "utilisation", "training GiB")
OUT = Console(width=120)


@dataclass(kw_only=True, frozen=True)
class Setting:
    """What a table is of."""

    task: str
    model: str
    peft: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.task}, {self.model}, {self.peft}, batches of {self.batch_size}"

    @property
    def words(self) -> list[str]:
        """The same on the command line."""
        return [
            *("--task", self.task),
            *("--model", self.model),
            *("--peft", self.peft),
            *("--batch-size", str(self.batch_size)),
        ]


def main() -> None:
    """Measure, print tables, write JSON."""
    given = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="`.*gradient_checkpointing.*` is deprecated")  # names that peft 0.21 uses
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            Setting(task=task, model=model, peft=peft, batch_size=size)
            for model, peft, size, task in itertools.product(given.model, given.peft, given.batch_size, given.task)
            if task == "seq_cls" or model not in ENCODERS
        ]
        if given.alone:
            ground, rows = prepared(settings[0], given, Path(folder))
            print(json.dumps(take(arms(ground, len(rows.train))[given.alone], rows, DEVICE)._asdict()))
        elif given.profile:
            write_text("training_profile", "\n\n".join(profiles(setting, given, Path(folder)) for setting in settings))
        elif given.four_bit:
            compare_four_bit(settings, given, Path(folder))
        else:
            compare(settings, given, Path(folder))


def arguments() -> argparse.Namespace:
    """Return what the command line says; the defaults are those of the device."""
    on_gpu = DEVICE.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=(*TASKS, "both"), default="both")
    models = ["llama3.2-1b", "llama2-7b"] if on_gpu else [EMBEDDED]
    parser.add_argument("--model", nargs="+", choices=(EMBEDDED, *SHAPES, *ENCODERS), default=models)
    parser.add_argument(
        "--peft", nargs="+", choices=("lora", "qlora"), default=["lora", "qlora"] if on_gpu else ["lora"]
    )
    parser.add_argument("--batch-size", nargs="+", type=int, default=[16, 64] if on_gpu else [16])
    parser.add_argument("--steps", type=int, default=16, help="of a turn's training (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=256, help="that a turn evaluates (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=SST2 if SST2.is_dir() else None, help="a folder like SST-2's")
    parser.add_argument("--memory", action="store_true", help="on the CPU: measure it in processes of their own")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--four-bit", action="store_true")
    peak = next((most for name, most in PEAKS.items() if on_gpu and name in torch.cuda.get_device_name()), None)
    parser.add_argument("--peak-tflops", type=float, default=peak, help="of the device (here: %(default)s)")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.task = TASKS if given.task == "both" else (given.task,)
    if "causal_lm" in given.task and not find_spec("trl"):
        OUT.print("TRL is not installed, so its arms are left out: pip install -c constraints.txt -e '.\\[benchmarks]'")
    return given


def prepared(setting: Setting, given: argparse.Namespace, folder: Path) -> tuple[Ground, Rows]:
    """Return what the arms of a setting stand on, and the rows of the round that warms up."""
    data = ["data=sst2", f"data.path={given.data}"] if given.data else ["data=rotten_tomatoes"]
    data += ["data.train_subset=null", "data.validation_subset=null"]
    model = [f"model={setting.model}"]
    if setting.model in SHAPES | MODERNBERT:
        model = [f"model.path={random_model(setting.model, data, folder)}"]
    size = setting.batch_size
    config = load_config(
        *data,
        *model,
        f"task={setting.task}",
        f"peft={setting.peft}",
        f"peft.r={RANK}",
        f"peft.alpha={ALPHA}",
        f"optim.lr={RATE}",
        f"trainer.batch_size={size}",
        f"trainer.eval_batch_size={2 * size}",
        "trainer.progress_bar=false",
        "tracking=none",
    )
    ground = Ground(prepare_inputs(resolve_inputs(config), show=False))
    return ground, ground.draw(0, given.steps * size, given.rows)


def random_model(name: str, data: list[str], folder: Path) -> Path:
    """Write a model of this shape and a tokenizer that is learned from the training rows; return where."""
    target = folder / name
    if target.is_dir():
        return target
    texts = load_examples(load_config(*data).data).train.column("text").to_pylist()
    tokenizer, encodes = learned_tokenizer(texts), name in MODERNBERT
    end, pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    if encodes:
        ends = [(tokenizer.eos_token, end)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokenizer.eos_token} $A {tokenizer.eos_token}", special_tokens=ends
        )
        shape = {"vocab_size": len(tokenizer), "cls_token_id": end, "sep_token_id": end, "bos_token_id": end}
        config = transformers.ModernBertConfig(**shape, **MODERNBERT[name], eos_token_id=end, pad_token_id=pad_id)
    else:
        positions = {"max_position_embeddings": 4096, "bos_token_id": None}
        config = transformers.LlamaConfig(**SHAPES[name], **positions, eos_token_id=end, pad_token_id=pad_id)
    auto = transformers.AutoModelForMaskedLM if encodes else transformers.AutoModelForCausalLM
    with torch.device(DEVICE):
        auto.from_config(config, dtype=torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def learned_tokenizer(texts: list[str]) -> Any:
    """Return a byte-level tokenizer of `VOCABULARY` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    end, alphabet = "</s>", pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, learner)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


def compare(settings: list[Setting], given: argparse.Namespace, folder: Path) -> None:
    """Measure all arms in each setting; what is measured is written at once."""
    found = []
    for setting in settings:
        ground, rows = prepared(setting, given, folder)
        turns = rounds(arms(ground, len(rows.train)), ground, given)
        facts = summary(turns, ground, given)
        if given.memory and DEVICE.type == "cpu":
            for name in turns:
                facts["arms"][name]["peak_gib"] = alone(name, setting, given)["peak_gib"]
        show(setting, facts)
        found.append(vars(setting) | facts)
        kind = [one for one in found if kind_of(one["model"], one["task"]) == kind_of(setting.model, setting.task)]
        write(f"training_{kind_of(setting.model, setting.task)}", kind)


def kind_of(model: str, task: str) -> str:
    """Return what the files of settings are called: encoders have one of their own."""
    return "encoders" if model in ENCODERS else task


def rounds(contestants: dict[str, Arm], ground: Ground, given: argparse.Namespace) -> dict[str, list[Turn]]:
    """Return the turns of each arm; the first round warms up, and chooses the expert's batch size."""
    found: dict[str, list[Turn]] = {name: [] for name in contestants}
    for number in range(given.repeats + 1):
        rows = ground.draw(number, given.steps * ground.batch_size, given.rows)
        for name in list(found):
            try:
                turn = take(contestants[name], rows, DEVICE)
            except (torch.OutOfMemoryError, OutOfMemory) as error:
                OUT.print(f"{name} runs out of memory and is left out: {str(error).splitlines()[0]}")
                del found[name]
                continue
            OUT.print(f"[dim]round {number} of {given.repeats}: {name}: {turn.train:.2f} s of training[/dim]")
            found[name].append(turn)
        if number == 0:
            tried = [name for name in map(tuned, TRIED) if name in found]
            best = min(tried, key=lambda name: found[name][0].train, default=None)
            found = {name: [] for name in found if name not in tried or name == best}
    return found


def summary(turns: dict[str, list[Turn]], ground: Ground, given: argparse.Namespace) -> dict[str, Any]:
    """Return speeds, ratios and memory of each arm, by stage."""
    limit = Limit(ground=ground)
    drawn = [ground.draw(number, given.steps * ground.batch_size, given.rows) for number in range(1, given.repeats + 1)]
    tokens = np.array([ground.tokens(rows) for rows in drawn], dtype=float).T
    sizes = {"train": given.steps * ground.batch_size, "test": given.rows}
    operations = {stage: np.array([limit.flops(stage, rows) for rows in drawn], dtype=float) for stage in sizes}
    found: dict[str, Any] = {name: {} for name in turns}
    for (stage, rows), lengths in zip(sizes.items(), tokens, strict=True):
        seconds = {name: np.array([getattr(turn, stage) for turn in of], dtype=float) for name, of in turns.items()}
        for name, own in seconds.items():
            if np.isnan(own).any():
                continue
            speed = {"seconds": own.tolist(), "rows_per_second": spread_of(rows / own)}
            speed["tokens_per_second"] = spread_of(lengths / own)
            speed["sentexp_by_it"] = spread_of(own / seconds[OURS]) if OURS in seconds else None
            speed["of_the_limit"] = spread_of(seconds[LIMIT] / own) if LIMIT in seconds else None
            if given.peak_tflops:
                speed["utilisation"] = spread_of(operations[stage] / own / given.peak_tflops / 1e12)
            found[name][stage] = speed
    for name, of in turns.items():
        found[name]["peak_gib"] = max(turn.peak_gib for turn in of) if DEVICE.type == "cuda" else None
    means = {stage: float(lengths.mean() / sizes[stage]) for stage, lengths in zip(sizes, tokens, strict=True)}
    precision = ground.inputs.precision.name
    return {"rows": sizes, "tokens_per_row": means, "rounds": given.repeats, "precision": precision, "arms": found}


def spread_of(values: Any) -> dict[str, float]:
    """Return the median, the quartiles and the ends of some values."""
    names = ("min", "q1", "median", "q3", "max")
    return dict(zip(names, np.percentile(values, [0, 25, 50, 75, 100]).tolist(), strict=True))


def show(setting: Setting, facts: dict[str, Any]) -> None:
    """Print a table for each stage."""
    for stage, title in (("train", "training"), ("test", "evaluation")):
        rows, tokens = facts["rows"][stage], facts["tokens_per_row"][stage]
        head = f"{setting}, {facts['precision']}: {title}, {rows} rows of {tokens:.1f} tokens, {facts['rounds']} rounds"
        table = Table()
        lines = [cells(name, arm[stage], arm["peak_gib"]) for name, arm in facts["arms"].items() if stage in arm]
        for column, values in zip(COLUMNS, zip(*lines, strict=True), strict=True):
            if any(values):
                table.add_column(column, justify="right" if column else "left")
        for line in lines:
            table.add_row(*(value for value, of in zip(line, zip(*lines, strict=True), strict=True) if any(of)))
        OUT.print(head, table)


def cells(name: str, speed: dict[str, Any], peak: float | None) -> list[str]:
    """Return an arm's line of a table; a number that there is not is empty."""
    rows = speed["rows_per_second"]
    quartiles = f"({rows['q1']:.1f} to {rows['q3']:.1f})"
    found = [name, f"{rows['median']:.1f}", quartiles, f"{speed['tokens_per_second']['median']:,.0f}"]
    for key, form in (("sentexp_by_it", "{:.2f} x"), ("of_the_limit", "{:.0%}"), ("utilisation", "{:.1%}")):
        found.append(form.format(speed[key]["median"]) if speed.get(key) else "")
    return [*found, "" if peak is None else f"{peak:.2f}"]


def alone(name: str, setting: Setting, given: argparse.Namespace) -> dict[str, float]:
    """Return the turn of an arm in a process of its own."""
    words = [*setting.words, "--alone", name, "--steps", str(given.steps), "--rows", str(given.rows)]
    if given.data:
        words += ["--data", str(given.data)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} in a process of its own ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare_four_bit(settings: list[Setting], given: argparse.Namespace, folder: Path) -> None:
    """Measure sentexp with frozen weights as they are against 4 bits."""
    found = []
    for setting in dict.fromkeys(Setting(**vars(setting) | {"peft": "lora"}) for setting in settings):
        both = {peft: Setting(**vars(setting) | {"peft": peft}) for peft in ("lora", "qlora")}
        grounds = {peft: prepared(one, given, folder)[0] for peft, one in both.items()}
        contestants: dict[str, Arm] = {peft: Sentexp(ground=ground) for peft, ground in grounds.items()}
        turns = rounds(contestants, grounds["lora"], given)
        table = Table("", "s/step", "(quartiles)", "training GiB")
        facts: dict[str, Any] = {}
        for peft, of in turns.items():
            on_gpu = DEVICE.type == "cuda"
            peak = max(turn.peak_gib for turn in of) if on_gpu else alone(OURS, both[peft], given)["peak_gib"]
            step = spread_of([turn.train / given.steps for turn in of])
            facts[peft] = {"seconds_per_step": step, "peak_gib": peak}
            table.add_row(peft, f"{step['median']:.3f}", f"({step['q1']:.3f} to {step['q3']:.3f})", f"{peak:.2f}")
        OUT.print(f"{setting} and qlora: {given.repeats} rounds of {given.steps} steps", table)
        found.append(vars(setting) | {"rounds": given.repeats} | facts)
        write("training_four_bit", found)


class _Profiled(L.Callback):
    """Records all steps but the first."""

    def __init__(self, profiler: torch.profiler.profile, steps: int) -> None:
        self.profiler, self.steps = profiler, steps

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        del trainer, module, outputs, batch
        if batch_idx == 0:
            self.profiler.start()
        if batch_idx == self.steps:
            self.profiler.stop()


def profiles(setting: Setting, given: argparse.Namespace, folder: Path) -> str:
    """Return where the time of sentexp's training steps goes: padded rows through transformers' layers, and ours."""
    ground, rows = prepared(setting, given, folder)
    arms = {"padded": Sentexp(ground=ground, padding_free=False), "without padding": Sentexp(ground=ground)}
    return "\n\n".join(profile(f"{setting}, {name}", arm, rows) for name, arm in arms.items())


def profile(title: str, arm: Sentexp, rows: Rows) -> str:
    """Return where the time of an arm's training steps goes: by groups of operations, and the operations."""
    steps = len(arm.ground.order("train", rows)) - 1
    arm.run("train", rows, *arm.load())
    on_gpu = DEVICE.type == "cuda"
    profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])
    seconds = arm.run("train", rows, *arm.load(), _Profiled(profiler, steps))
    events, own = profiler.key_averages(), f"self_{'device' if on_gpu else 'cpu'}_time_total"
    if on_gpu:
        events = [event for event in events if event.device_type is not DeviceType.CPU]
    spent = dict.fromkeys(GROUPS, 0.0)
    for event in events:
        group = next(name for name, parts in GROUPS.items() if any(part in event.key for part in parts))
        spent[group] += getattr(event, own) / 1e6
    spent["nothing of these: Python, waiting, the profiler"] = seconds - sum(spent.values())
    table = Table("", "ms a step", "share")
    for name, value in spent.items():
        table.add_row(name, f"{value / steps * 1e3:.1f}", f"{value / seconds:.1%}")
    with OUT.capture() as captured:
        OUT.print(f"{title}: {seconds / steps:.3f} s a step, while it is recorded", table)
    longest = profiler.key_averages().table(sort_by=own, row_limit=SHOWN, max_name_column_width=60)
    text = f"{captured.get()}\n{longest}"
    print(text)
    return text


def write(name: str, found: list[dict[str, Any]]) -> None:
    """Write what was measured, on which machine, and how busy that was."""
    circumstances = {"load_average": os.getloadavg(), "threads": torch.get_num_threads()}
    versions = library_versions() | ({"trl": version("trl")} if find_spec("trl") else {})
    report = {"machine": describe(DEVICE) | circumstances, "versions": versions, "settings": found}
    write_text(name, json.dumps(report, indent=2), "json")


def write_text(name: str, text: str, kind: str = "txt") -> None:
    """Write a file beside this."""
    (HERE / f"{name}_{DEVICE.type}.{kind}").write_text(text + "\n")


if __name__ == "__main__":
    main()
