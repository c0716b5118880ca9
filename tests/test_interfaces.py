"""What sentexp uses of libraries beyond their documented interfaces is there, in whatever release is installed.

Private names, internals that are only looked at, and what is optional: where it is gone, sentexp would fail late, or do
something else without a word. Each message names the module that uses it.
"""

import logging
import warnings
from importlib import import_module
from inspect import signature

import lightning as L  # noqa: N812 (the library's own abbreviation)
import pytest
import torch
from storages import STORAGES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, Sampler

from sentexp.config import Attention, Precision, load_config, register_schemas
from sentexp.export.pyfunc import quiet_pyfunc
from sentexp.models.adapters import attach
from sentexp.models.loading import Loading, load_classifier, load_language_model, load_tokenizer
from sentexp.models.pretrained import locate_backbone

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj")


def has(thing, *names, used):
    """Check that a thing has attributes."""
    missing = [name for name in names if not hasattr(thing, name)]
    assert not missing, f"{thing!r:.200} has no {', '.join(missing)}, used by {used}"


def takes(function, *names, used):
    """Check that a function takes arguments by these names."""
    missing = [name for name in names if name not in signature(function).parameters]
    assert not missing, f"{function!r:.200} takes no {', '.join(missing)}, given by {used}"


def logs_as(module, used, attribute="_logger"):
    """Check that a module logs under its own name, by which it is silenced."""
    logger = getattr(import_module(module), attribute, None)
    assert isinstance(logger, logging.Logger), f"{module} has no logger {attribute}, silenced by {used}"
    assert logger.name == module, f"{module} logs as {logger.name}, and {used} silences its name"


@pytest.fixture
def tiny():
    """Return a function that loads the tiny model, as a classifier or as a language model."""

    def load(*overrides, language_model=False):
        config = load_config("model=tiny", *overrides)
        backbone = locate_backbone(config.model)
        tokenizer = load_tokenizer(backbone)
        how = Loading(
            storage=config.peft, attention=Attention.auto, precision=Precision.fp32, device=torch.device("cpu")
        )
        if language_model:
            return load_language_model(backbone, tokenizer, how)
        return load_classifier(backbone, tokenizer, ["negative", "positive"], how)

    return load


def test_the_filters_of_warnings_can_be_put_back():
    used = "sentexp.models.fast.run_thread"
    has(warnings, "_filters_mutated", "filters", "showwarning", used=used)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = warnings.filters
        warnings.filters = [("ignore", None, Warning, None, 0)]
        warnings._filters_mutated()
        warnings.warn("one", stacklevel=1)
        warnings.filters = before
        warnings._filters_mutated()
        warnings.warn("two", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["two"], used


def test_hydra_splits_a_sweep_and_returns_what_a_job_returned():
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.utils import JobReturn

    parser = OverridesParser.create(config_loader=None)
    overrides = parser.parse_overrides(["a=1,2", "b=3"])
    has(BasicSweeper, "split_arguments", used="sentexp.sweeps.grid")
    assert BasicSweeper.split_arguments(overrides, None) == [[["a=1", "b=3"], ["a=2", "b=3"]]], "sentexp.sweeps.grid"
    has(JobReturn(), "_return_value", used="sentexp.sweeps.launch")

    used = "sentexp.config.explain, sentexp.sweeps.grid"
    (sweep, plain), interval = overrides, parser.parse_override("x=interval(1,2)")
    assert (sweep.is_sweep_override(), plain.is_sweep_override(), interval.is_interval_sweep()) == (True, False, True)
    assert (list(sweep.sweep_string_iterator()), sweep.get_key_element()) == (["1", "2"], "a"), used
    assert (interval.value().start, interval.value().end) == (1, 2), used
    assert (interval.key_or_group, interval.input_line) == ("x", "x=interval(1,2)"), used


def test_hydra_has_its_own_launcher_where_sentexp_looks_for_it():
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.errors import MissingConfigException
    from hydra.utils import get_class

    register_schemas()
    target = ConfigStore.instance().load("hydra/launcher/sequential.yaml").node._target_
    assert get_class(target).__name__ == BasicLauncher.__name__, "sentexp.config names it for hydra/launcher=sequential"
    launcher = BasicLauncher()  # sentexp.sweeps.fused gives it no arguments
    takes(launcher.launch, "job_overrides", "initial_job_idx", used="sentexp.sweeps.launch")
    keys = ("hydra_context", "task_function", "config")
    takes(Plugins.instantiate_launcher, *keys, used="sentexp.sweeps.sweeper")
    has(HydraConfig.instance(), "cfg", used="sentexp.sweeps.fused")
    has(GlobalHydra.instance(), "clear", used="sentexp.config.explain")
    assert MissingConfigException("", "a", ["b"]).options == ["b"], "sentexp.config.explain"


def test_hydra_has_a_parser_of_its_options():
    from hydra._internal.utils import get_args_parser

    parsed = get_args_parser().parse_args(["--multirun", "a=1"])
    has(parsed, "experimental_rerun", used="sentexp.cli.main")


def test_the_launcher_of_ray_says_how_ray_is_started():
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers the launchers that are installed
    assert "address" in ConfigStore.instance().load("hydra/launcher/ray.yaml").node.ray.init, "sentexp.sweeps.launch"


def test_optuna_gives_a_trial_by_its_id_and_the_storage_of_a_study():
    import optuna
    from optuna.trial import Trial

    used = "sentexp.search.policies, sentexp.search.trials"
    study = optuna.create_study(study_name="a")
    asked = study.ask()
    (found,) = study.get_trials(deepcopy=False)
    has(found, "_trial_id", used=used)
    has(asked, "_trial_id", used=used)
    has(study, "_storage", used=used)
    trial = Trial(study, found._trial_id)
    trial.report(0.5, step=3)
    assert trial.study._storage.get_trial(trial._trial_id).intermediate_values == {3: 0.5}, used
    optuna.delete_study(study_name="a", storage=study._storage)
    assert "a" not in optuna.get_all_study_names(study._storage), used


def test_torch_tells_what_the_processor_multiplies():
    has(torch.cpu, "_is_amx_tile_supported", "_is_avx512_bf16_supported", used="sentexp.system.device")
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool), "sentexp.system.device"
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool), "sentexp.system.device"
    takes(torch.cuda.is_bf16_supported, "including_emulation", used="sentexp.system.device")
    assert torch.backends.cpu.get_cpu_capability(), "sentexp.system.device"


def test_torch_copies_and_scales_many_tensors_at_once():
    used = "sentexp.models.fast.stacked_lora"
    has(torch, "_foreach_copy_", "_foreach_mul_", used=used)
    there, here = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.ones(3)]
    torch._foreach_copy_(there, here)
    torch._foreach_mul_(there[1::2], [3.0])
    assert [tensor.tolist() for tensor in there] == [[1, 1], [3, 3, 3]], used


def test_torch_has_the_derivative_of_silu():
    gate = torch.linspace(-3, 3, 7, requires_grad=True)
    nn.functional.silu(gate).sum().backward()
    own = torch.ops.aten.silu_backward(torch.ones(7), gate.detach())
    torch.testing.assert_close(own, gate.grad, msg="sentexp.models.fast.ops")


def test_torch_attends_to_rows_of_various_lengths():
    from torch.nn.attention.varlen import varlen_attn

    used = "sentexp.models.fast.attention"
    by_place = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    parameters = signature(varlen_attn).parameters
    assert list(parameters)[:7] == by_place, f"{used} gives these by their place"
    takes(varlen_attn, "scale", "window_size", used=used)
    # Without this one each key head is repeated: any other would be needed by name.
    known = {*by_place, "scale", "window_size", "enable_gqa"}
    needed = [name for name, one in parameters.items() if one.default is one.empty and name not in known]
    assert not needed, f"{used} does not give {needed}"
    query, key = torch.ones(1, 4, 2, 8), torch.ones(1, 2, 2, 8)
    out = nn.functional.scaled_dot_product_attention(query, key, key, scale=0.5, enable_gqa=True)
    assert out.shape == query.shape, used


def test_torch_shards_layers_and_puts_them_together():
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    used = "sentexp.distributed.sharding"
    takes(fully_shard, "mesh", "reshard_after_forward", used=used)
    takes(distribute_tensor, "tensor", "device_mesh", "placements", used=used)
    has(DTensor, "full_tensor", "device_mesh", "placements", used=used)
    assert isinstance(FSDPModule, type), used
    assert list(nn.Linear(1, 2)._parameters) == ["weight", "bias"], "sentexp.models.dequantize"


def test_torch_exports_graphs_by_its_compiler():
    used = "sentexp.export.exporters"
    takes(torch.onnx.export, "input_names", "output_names", "dynamic_shapes", "dynamo", "verbose", used=used)
    assert torch.export.Dim("tokens", max=7).max == 7, used


def test_transformers_lets_a_model_attend_by_a_registered_function(tiny):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    used = "sentexp.models.fast.attention, sentexp.models.fast.padding_free"
    model = tiny()
    has(model.config, "_attn_implementation", used=used)
    assert model.config._attn_implementation in ALL_ATTENTION_FUNCTIONS, used
    assert "sdpa" in ALL_MASK_ATTENTION_FUNCTIONS, used
    seen = []

    def attention(module, query, key, value, attention_mask, **options):
        seen.append((module.layer_idx, options["packed"], options["scaling"], options["dropout"], attention_mask))
        return query.transpose(1, 2), None

    AttentionInterface.register("of_this_test", attention)
    AttentionMaskInterface.register("of_this_test", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.config._attn_implementation = "of_this_test"
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    ids, positions = torch.ones(1, 3, dtype=torch.long), torch.arange(3)[None]
    with torch.no_grad():
        model.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, packed="rows")
    assert [layer for layer, *_ in seen] == [0, 1], f"{used}: other attention than that of the registered name"
    for _, packed, scaling, dropout, given in seen:
        assert (packed, scaling, dropout) == ("rows", 16**-0.5, 0.0), used
        assert given is mask, f"{used}: a mask of four dimensions is not taken as it is"


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2"])
def test_transformers_has_layers_of_llama_in_the_parts_that_are_taken_out_of_them(kind):
    import transformers

    from sentexp.models.fast.support import ARCHITECTURES, LAYERS, LINEAR, supports

    used = "sentexp.models.fast.llama, sentexp.models.fast.support"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 8}
    config = getattr(transformers, f"{kind}Config")(**sizes, num_attention_heads=2, num_key_value_heads=1)
    with torch.device("meta"):
        backbone = getattr(transformers, f"{kind}Model")(config).requires_grad_(False)
    (layer,) = backbone.layers
    assert config.model_type in ARCHITECTURES, used
    assert type(layer).__name__ in LAYERS, used
    for part, names in LINEAR.items():
        has(layer, part, used=used)
        has(getattr(layer, part), *names, used=used)
    has(layer.self_attn, "head_dim", "scaling", used=used)
    has(layer, "gradient_checkpointing", "input_layernorm", "post_attention_layernorm", used=used)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, backbone.norm):
        has(norm, "weight", "variance_epsilon", used=used)
    has(config, "attention_dropout", "sliding_window" if kind != "Llama" else "hidden_act", used=used)
    assert layer.mlp.config.hidden_act == "silu", used
    cosine, sine = backbone.rotary_emb(torch.zeros(1, 3, 16, device="meta"), torch.zeros(1, 3, device="meta"))
    assert cosine.shape == sine.shape == (1, 3, 8), used
    assert supports(backbone), used


def test_transformers_tells_what_a_model_is_made_of(tiny):
    model = tiny(language_model=True)
    has(model, "_no_split_modules", used="sentexp.distributed.sharding")
    assert type(model.model.layers[0]).__name__ in model._no_split_modules, "sentexp.distributed.sharding"
    has(model, "all_tied_weights_keys", used="sentexp.export.exporters")
    assert set(model.all_tied_weights_keys) == {"lm_head.weight"}, "sentexp.export.exporters"
    takes(model.config.to_json_string, "use_diff", used="sentexp.export.exporters")
    takes(model.forward, "logits_to_keep", used="sentexp.models.label_scorer")
    takes(model.generate, "synced_gpus", used="sentexp.models.label_scorer")
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager", "sentexp.export.exporters, sentexp.plan.estimate"
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert model.model.layers[0].gradient_checkpointing, "sentexp.run.build, sentexp.models.fast.llama"


def test_transformers_reports_what_it_did_not_find(tiny, tmp_path):
    from transformers import AutoModelForSequenceClassification

    tiny(language_model=True).save_pretrained(tmp_path)
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {"score.weight"} == set(report["missing_keys"]), "sentexp.models.loading"
    assert not report["mismatched_keys"], "sentexp.models.loading"


def test_transformers_opens_its_tokenizers_and_gguf_files():
    from tokenizers import Tokenizer, models
    from transformers import GgufConfig, PreTrainedTokenizerFast

    used = "sentexp.data.tokens"
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.add_special_tokens(["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    has(tokenizer, "backend_tokenizer", "added_tokens_decoder", used=f"{used}, sentexp.data.prompts")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    assert [one.ids for one in backend.encode_batch_fast(["<s>"], add_special_tokens=False)] == [[1]], used
    has(backend, "encode_special_tokens", used=used)
    backend.encode_special_tokens = True
    assert backend.encode("<s>", add_special_tokens=False).ids == [0], f"{used}: special tokens cannot be text"
    takes(GgufConfig.__init__, "dequantize", used="sentexp.models.pretrained, sentexp.export.exporters")
    assert GgufConfig(dequantize=True).dequantize is True, "sentexp.models.pretrained, sentexp.export.exporters"


def test_transformers_keeps_the_layers_of_gpt2_transposed():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(3, 2)
    has(layer, "nx", "nf", used="sentexp.models.adapters")
    assert (layer.nx, layer.nf, tuple(layer.weight.shape)) == (2, 3, (2, 3)), "sentexp.models.adapters"
    assert type(layer).__name__ == "Conv1D", "sentexp.models.adapters, sentexp.models.dequantize"


@pytest.mark.parametrize(("bits", "sign"), [("nf4", "is_loaded_in_4bit"), ("int8", "is_loaded_in_8bit")])
def test_transformers_marks_a_quantised_model(tiny, bits, sign):
    used = "sentexp.models.dequantize takes it off"
    model = tiny("peft=lora", f"peft.quantization={bits}")
    has(model, sign, "is_quantized", "hf_quantizer", "quantization_method", used=used)
    has(model.config, "quantization_config", used=used)


def test_bitsandbytes_packs_in_4_bits_and_unpacks_again(tiny):
    from bitsandbytes.functional import dequantize_4bit

    layer = tiny("peft=qlora").model.layers[0].self_attn.k_proj
    assert type(layer).__name__ == "Linear4bit", "sentexp.models.fast.support"
    has(layer, "compute_dtype", used="sentexp.models.fast.support")
    has(layer, "support_avx512bf16_for_cpu", "quant_state", used="sentexp.models.loading")
    assert tuple(layer.weight.quant_state.shape) == (32, 64), "sentexp.models.adapters"
    plain = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert tuple(plain.shape) == (32, 64), "sentexp.models.fast.stacked_lora"
    torch.testing.assert_close(nn.functional.linear(torch.eye(64), plain), layer(torch.eye(64)), msg="grouped")


def test_bitsandbytes_names_what_it_keeps_in_8_bits_and_its_optimizers(tiny):
    import bitsandbytes

    layer = tiny("peft=lora", "peft.quantization=int8").model.layers[0].self_attn.q_proj
    assert type(layer.weight).__name__ == "Int8Params", "sentexp.models.dequantize"
    for name in ("AdamW8bit", "PagedAdamW32bit", "PagedAdamW8bit"):
        has(bitsandbytes.optim, name, used="sentexp.training.optim")
        takes(getattr(bitsandbytes.optim, name), "lr", "betas", "eps", used="sentexp.training.optim")
    logs_as("bitsandbytes.backends.cpu.ops", "sentexp.system.console", "logger")


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_peft_keeps_the_parts_of_an_adapter_where_they_are_looked_for(tiny, method):
    config = load_config("model=tiny", f"peft={method}", "peft.dropout=0.25")
    wrapped, _ = attach(tiny(), config.peft)
    inside = wrapped.get_base_model().model.layers[0].self_attn
    names = wrapped.base_model.targeted_module_names
    assert all(f"model.layers.0.self_attn.{name}" in names for name in LINEAR), "sentexp.models.adapters"
    used = "sentexp.models.fast.stacked_lora"
    layer, parts = inside.q_proj, ("lora_A", "lora_B", "lora_dropout", "scaling", "lora_magnitude_vector")
    has(layer, *parts, "disable_adapters", "get_base_layer", used=used)
    assert list(layer.lora_A) == list(layer.lora_B) == list(layer.lora_dropout) == ["default"], used
    assert layer.lora_dropout["default"].p == 0.25, used
    assert layer.scaling["default"] == config.peft.alpha / config.peft.r, used
    assert layer.disable_adapters is False, used
    with wrapped.disable_adapter():
        assert layer.disable_adapters is True, used
    assert type(layer.get_base_layer()) is nn.Linear, used
    has(layer, "lora_variant", "merged", used="sentexp.models.fast.support")
    assert layer.merged is False, "sentexp.models.fast.support"
    variants = [type(variant).__name__ for variant in layer.lora_variant.values()]
    if method == "dora":
        assert variants == ["DoraLinearVariant"], "sentexp.models.fast.support"
        assert layer.lora_magnitude_vector["default"].weight.shape == (64,), used
    else:
        assert variants == [], "sentexp.models.fast.support"
        assert "default" not in layer.lora_magnitude_vector, used


def test_peft_keeps_the_head_beside_its_copy_and_merges_what_was_trained(tiny):
    from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight

    peft = load_config("model=tiny", "peft=lora").peft
    wrapped, _ = attach(tiny(), peft)
    head = wrapped.get_base_model().score
    has(head, "modules_to_save", "original_module", used="sentexp.models.structure, sentexp.models.adapters")
    assert list(head.modules_to_save) == ["default"], "sentexp.models.structure"
    assert list(wrapped.peft_config) == ["default"], "sentexp.models.saving"
    takes(wrapped.save_pretrained, "save_embedding_layers", used="sentexp.models.saving")
    takes(wrapped.merge_and_unload, "safe_merge", used="sentexp.models.merge")
    merged = wrapped.merge_and_unload(safe_merge=True)
    assert {type(module) for module in merged.modules() if hasattr(module, "weight")} >= {nn.Linear, nn.Embedding}
    assert not [name for name, _ in merged.named_parameters() if "lora_" in name or "original" in name], "merged"
    packed = tiny("peft=qlora").model.layers[0].self_attn.k_proj
    assert tuple(dequantize_module_weight(packed).shape) == (32, 64), "sentexp.models.dequantize"
    assert tuple(dequantize_bnb_weight(packed.weight).shape) == (32, 64), "sentexp.models.start_from_data"


def test_peft_knows_the_layers_of_ia3_and_says_which_do_not_match(tiny):
    from peft import LoraConfig, get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    wrapped, _ = attach(tiny(), load_config("model=tiny", "peft=ia3").peft)
    assert set(wrapped.peft_config["default"].feedforward_modules) == {"down_proj"}, "sentexp.models.adapters"
    assert any("ia3_" in name for name, _ in wrapped.named_parameters()), "sentexp.models.adapters"
    with pytest.raises(NoMatchingPeftModuleError):
        get_peft_model(tiny(), LoraConfig(target_modules=["unknown"]))


class Learner(L.LightningModule):
    """The smallest module that trains and is evaluated."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        """Return the loss of a batch."""
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        """Log the loss of a batch."""
        self.log("loss", self.layer(batch).sum())

    def configure_optimizers(self):
        """Return an optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(L.Callback):
    """Notes where the loops are at the end of each batch."""

    def __init__(self):
        self.seen, self.fits = [], []

    def on_train_batch_end(self, trainer, *_):
        """Note the counters."""
        loop = trainer.fit_loop.epoch_loop
        self.seen.append((loop.total_batch_idx, loop.batch_idx, loop.batch_progress.current.processed))
        self.fits.append(trainer.state.fn == "fit")
        has(loop, "_batches_that_stepped", used="sentexp.training.module")

    def on_validation_end(self, trainer, *_):
        """Note the interval."""
        self.seen.append((trainer.val_check_batch, trainer.check_val_every_n_epoch))


class Order(Sampler):
    """Rows in order; notes the epoch of each pass."""

    def __init__(self):
        self.epoch, self.epochs = None, []

    def __iter__(self):
        self.epochs.append(self.epoch)
        return iter(range(4))

    def __len__(self):
        return 4

    def set_epoch(self, epoch):
        """Keep the epoch."""
        self.epoch = epoch


@pytest.mark.filterwarnings("ignore")  # of Lightning, about a training this small
def test_lightning_counts_batches_and_epochs_in_its_loops(tmp_path):
    watch, order = Watch(), Order()
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = L.Trainer(
        max_epochs=2,
        val_check_interval=2,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[watch],
        default_root_dir=tmp_path,
        **dict.fromkeys(off, False),
    )
    rows = torch.ones(4, 1)
    trainer.fit(Learner(), DataLoader(rows, sampler=order), DataLoader(rows), weights_only=True)
    evaluated = (2, 1)
    first = [(0, 0, 1), (1, 1, 2), evaluated, (2, 2, 3), (3, 3, 4), evaluated]
    second = [(4, 0, 1), (5, 1, 2), evaluated, (6, 2, 3), (7, 3, 4), evaluated]
    used = "sentexp.training.checkpoint, sentexp.data.datamodule"
    assert watch.seen == first + second, used
    assert all(watch.fits), "sentexp.training.checkpoint compares trainer.state.fn"
    assert trainer.fit_loop.epoch_progress.current.processed == 2, used
    assert order.epochs == [0, 1], "sentexp.data.datamodule shuffles each epoch anew"


def test_lightning_lets_a_strategy_and_early_stopping_be_changed():
    from lightning.pytorch.callbacks import EarlyStopping
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.strategies import SingleDeviceStrategy

    used = "sentexp.distributed.strategies"
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    wrapped = LightningOptimizer(plain)
    has(wrapped, "_optimizer", used=used)
    assert wrapped._optimizer is plain, used
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    has(strategy, "_lightning_module", "is_global_zero", used=used)
    strategy._lightning_module = module = Learner()
    assert strategy.lightning_module is module, used
    takes(strategy.optimizer_step, "optimizer", "closure", "model", used=used)
    takes(strategy.backward, "closure_loss", used=used)
    takes(strategy.optimizer_state, "optimizer", used=used)
    takes(strategy.load_optimizer_state_dict, "checkpoint", used=used)
    assert signature(strategy.teardown).parameters == {}, used
    stopping = EarlyStopping(monitor="a", patience=3, check_on_train_epoch_end=False)
    assert (stopping.wait_count, stopping.patience) == (0, 3), "sentexp.training.checkpoint"


def test_lightning_reads_the_first_machine_of_a_cluster_and_moves_named_tuples():
    from typing import NamedTuple

    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.utilities import move_data_to_device

    class Rows(NamedTuple):
        ids: torch.Tensor
        count: int

    assert SLURMEnvironment.resolve_root_node_address("node[3-5,9]") == "node3", "sentexp.distributed.processes"
    moved = move_data_to_device(Rows(torch.ones(1), 1), torch.device("meta"))
    assert (type(moved), moved.ids.device.type, moved.count) == (Rows, "meta", 1), "sentexp.training.module"


def test_mlflow_serves_a_model_by_the_interface_of_its_own_command():
    used = "sentexp.serving.serve"
    with quiet_pyfunc() as pyfunc:
        server = import_module("mlflow.pyfunc.scoring_server")
        keys = ("python_model", "artifacts", "code_paths", "signature", "input_example", "pip_requirements")
        takes(pyfunc.save_model, *keys, "model_config", "metadata", used="sentexp.export.mlflow_model")
        takes(pyfunc.load_model, "model_config", used=used)
        has(pyfunc.PyFuncModel, "unwrap_python_model", used=used)
    has(server, "init", used=used)
    assert list(signature(server.init).parameters) == ["model"], used
    variables = import_module("mlflow.environment_variables")
    has(variables, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", used="sentexp.export.pyfunc")
    logs_as("mlflow.pyfunc.scoring_server", used)
    logs_as("mlflow.models.utils", used)


def test_uvicorn_serves_at_a_socket_that_listens_already():
    import uvicorn

    used = "sentexp.serving.serve"
    takes(uvicorn.Config, "http", "log_level", "timeout_graceful_shutdown", used=used)
    takes(uvicorn.Server.serve, "sockets", used=used)
    assert uvicorn.Server(uvicorn.Config(None)).should_exit is False, used


def test_a_connection_of_uvicorn_knows_its_request():
    from uvicorn.protocols.http import h11_impl
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    used = "sentexp.serving.request_timeout"
    for name in ("connection_made", "data_received", "connection_lost"):
        has(AutoHTTPProtocol, name, used=used)
    request = h11_impl.RequestResponseCycle.__init__.__code__.co_names
    assert {"more_body", "response_started", "response_complete"} <= set(request), used
    assert {"cycle", "loop", "transport"} <= set(h11_impl.H11Protocol.__init__.__code__.co_names), used


def test_mlflow_measures_the_system_for_a_run_and_names_its_tags():
    from mlflow.exceptions import MlflowException
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.utils import mlflow_tags
    from mlflow.utils.file_utils import local_file_uri_to_path

    from sentexp.tracking.store import PARENT

    used = "sentexp.tracking.store"
    takes(SystemMetricsMonitor, "run_id", "resume_logging", "tracking_uri", used=used)
    has(SystemMetricsMonitor, "start", "finish", used=used)
    assert next(iter(signature(SystemMetricsMonitor).parameters)) == "run_id", f"{used} gives it by its place"
    assert local_file_uri_to_path("file:///a/b%20c") == "/a/b c", used
    assert MlflowException.invalid_parameter_value("no").error_code == "INVALID_PARAMETER_VALUE", "sentexp.serving"
    assert mlflow_tags.MLFLOW_PARENT_RUN_ID == PARENT, used
    assert mlflow_tags.MLFLOW_DATASET_CONTEXT == "mlflow.data.context", used
    assert mlflow_tags.MLFLOW_SOURCE_NAME == "mlflow.source.name", "sentexp.run.recording"
    assert mlflow_tags.MLFLOW_GIT_COMMIT == "mlflow.source.git.commit", "sentexp.tracking.provenance"
    logs_as("mlflow.store.db.utils", used)
    logs_as("mlflow.system_metrics.system_metrics_monitor", used)


def test_the_hub_names_its_errors_and_datasets_gives_tables_of_arrow():
    import datasets
    import huggingface_hub
    import pyarrow as pa

    used = "sentexp.system.hub"
    errors = ("GatedRepoError", "HfHubHTTPError", "HFValidationError", "LocalEntryNotFoundError")
    has(import_module("huggingface_hub.errors"), *errors, "RepositoryNotFoundError", "RevisionNotFoundError", used=used)
    takes(huggingface_hub.snapshot_download, "repo_type", "revision", "allow_patterns", used=used)
    has(import_module("datasets.exceptions"), "DatasetNotFoundError", "DatasetGenerationError", used=used)
    takes(datasets.load_dataset, "split", "revision", "cache_dir", used=used)
    takes(datasets.get_dataset_split_names, "revision", used=used)
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]}).with_format("arrow")[:]
    assert isinstance(rows, pa.Table), used
    assert rows.column("text").to_pylist() == ["a", "b"], used


def test_smaller_libraries_have_the_functions_that_are_called():
    from ftfy.badness import is_bad
    from rensa import RMinHash
    from rich.cells import cell_len

    assert (is_bad("sch\u00c3\u00b6n"), is_bad("sch\u00f6n")) == (True, False), "sentexp.data.findings"
    rows = RMinHash.digest_matrix_from_token_sets([{"a", "b"}, {"b", "a"}], num_perm=8, seed=0).to_rows()
    assert [list(row) for row in rows] == [list(rows[0])] * 2, "sentexp.data.near_duplicates"
    assert cell_len("\u8fd9") == 2, "sentexp.compare.leaderboard_tables"


@pytest.mark.parametrize("storage", STORAGES)
def test_torchao_and_hqq_keep_weights_under_the_names_that_are_read(storage, tiny):
    used = "sentexp.models.dequantize, sentexp.models.quantized"
    layer = tiny("peft=lora", f"peft.quantization={storage}").model.layers[0].self_attn.q_proj
    has(layer, "in_features", "out_features", "bias", used=used)
    if storage == "hqq4":
        assert type(layer).__name__ == "HQQLinear", "sentexp.models.fast.support"
        assert list(layer._parameters) == ["W_q"], used
        has(layer, "compute_dtype", "dequantize", "meta", used=used)
        return
    logs_as("torchao", "sentexp.system.console", "logger")
    assert type(layer.weight).__module__.startswith("torchao."), used
    has(layer.weight, "dequantize", "dtype", used=used)


def test_torch_says_what_torchao_registers_under_a_name_of_its_own():
    if not hasattr(torch.utils._pytree, "log"):
        pytest.skip("this torch says nothing")
    logs_as("torch.utils._pytree", "sentexp.system.console", "log")


def test_torchs_products_with_4_bit_weights_still_have_no_gradient():
    """Where they have one, torchao's 4 bits could be offered: see `peft.quantization` in the guide."""
    with FakeTensorMode():  # shapes alone: the product itself needs a GPU, its place in autograd does not
        x = torch.empty(4, 128, dtype=torch.bfloat16, requires_grad=True)
        packed, scales = torch.empty(8, 1, 32, 4, dtype=torch.int32), torch.empty(2, 64, 2, dtype=torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm(x, packed, 64, scales)
        with pytest.raises(RuntimeError, match="derivative for aten::_weight_int4pack_mm is not implemented"):
            product.sum().backward()
