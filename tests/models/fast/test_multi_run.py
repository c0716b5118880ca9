"""Runs that read together: each gets what it would alone, whatever becomes of the others."""

import threading
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rounding import agree, rounding
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from sentexp.data.packing import Packer
from sentexp.models.fast import fused_forward as fused_forward_module
from sentexp.models.fast import fused_lora_linear, multi_run
from sentexp.models.fast.batched_lora import AdapterStack, can_be_stacked
from sentexp.models.fast.fused_forward import ForwardInput, FusedRows, fused_forward
from sentexp.models.fast.fusion_context import reading, unfused
from sentexp.models.fast.multi_run import RunScheduler
from sentexp.models.fast.padding_free import PaddingFreeModel
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.fast.run_thread import Interrupted
from sentexp.models.loading import clone_sharing_weights

ADAPTERS = (
    {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    {"r": 8, "lora_alpha": 3, "target_modules": "all-linear", "lora_dropout": 0.3},
    {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1, "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "target_modules": ["down_proj"]},
    {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "lora_dropout": 0.2, "use_dora": True},
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_labels=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForSequenceClassification(shape)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.2)
    return model.requires_grad_(False)


@pytest.fixture
def runs(base):
    """Return runs with adapters of different kinds over the same weights."""
    return adapted(base, ADAPTERS)


def adapted(base, adapters):
    torch.manual_seed(1)
    models = []
    for options in adapters:
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 by an old name
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            model = get_peft_model(clone_sharing_weights(base), LoraConfig(task_type="SEQ_CLS", **options)).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
        models.append(PaddingFreeModel(model))
    return models


def rows(seed, prefix):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (5,), generator=generator).tolist()
    texts = [[5, 6, 7, *torch.randint(1, 60, (length,), generator=generator).tolist()] for length in lengths]
    return Packer().score(texts, prefix)


def adapter(run):
    return [parameter for name, parameter in run.model.named_parameters() if "lora" in name]


def gradients_of(run):
    return {name: part.grad.clone() for name, part in run.model.named_parameters() if "lora" in name}


def learn(run, seed, prefix=0, texts=None):
    """Return the loss of a step of a run, and leave the gradients in its adapter."""
    torch.manual_seed(seed)
    for parameter in adapter(run):
        parameter.grad = None
    weights = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed))
    loss = (run.hidden(rows(seed, prefix) if texts is None else texts) * weights).sum()
    loss.backward()
    run.finish()
    return {"loss": loss.detach()} | gradients_of(run)


NEWER = {
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma3_text": {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]},
}


@pytest.mark.parametrize("kind", NEWER)
def test_norms_of_heads_and_layers_without_positions_are_those_of_each_run_alone(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes, **heads, **NEWER[kind]))
    for parameter in base.parameters():
        parameter.data.normal_(mean=float(parameter.ndim == 1), std=0.2)
    compare_with_runs_alone(adapted(base.requires_grad_(False), ADAPTERS), prefix=0)


@pytest.mark.parametrize("prefix", [0, 3])
def test_states_and_gradients_are_those_of_each_run_alone(runs, prefix):
    compare_with_runs_alone(runs, prefix)


def test_layers_that_compute_again_drop_the_same_again(base):
    runs = adapted(base, [{"target_modules": "all-linear", "lora_dropout": 0.3, "r": rank} for rank in (4, 2)])
    kept = [[ForwardInput(run.fast_layers, rows(seed, 0), None, seed) for seed, run in enumerate(runs)] for _ in "ab"]
    found = []
    for inputs, recomputes in zip(kept, (False, True), strict=True):
        for run in runs:
            for layer in run.fast_layers.backbone.layers:
                layer.gradient_checkpointing = recomputes
        states = fused_forward(inputs)
        weights = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        parameters = [parameter for run in runs for parameter in adapter(run)]
        gradients = torch.autograd.grad(sum((own * weights).sum() for own in states), parameters)
        found.append({str(number): part.detach() for number, part in enumerate([*states, *gradients])})
    agree(*found)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_batched_adapters_learn_what_each_run_learns_alone(base, monkeypatch, prefix, targets, dropout):
    sizes = ({"r": 4, "lora_alpha": 8}, {"r": 1, "lora_alpha": 3}, {"r": 3, "lora_alpha": 8, "use_rslora": True})
    runs = adapted(base, [{"target_modules": targets, "lora_dropout": dropout} | options for options in sizes])
    products = []
    original = fused_lora_linear.batched_lora_linear

    def batched(*given):
        products.append(given)
        return original(*given)

    monkeypatch.setattr(fused_lora_linear, "batched_lora_linear", batched)
    stack = AdapterStack([run.fast_layers.adapters for run in runs])
    for seed in (0, 1):
        compare_with_runs_alone(runs, prefix, [rows(seed, prefix)] * len(runs), stack)
    compare_with_runs_alone(runs, prefix, None, stack)  # rows of other lengths: one after the other
    assert len(products) == 2 * 3 * (4 if targets == "all-linear" else 2)


def test_adapters_that_differ_otherwise_are_not_batched(runs):
    parts = [run.fast_layers.adapters for run in runs]
    plain, dropped, fewer, down, dora = parts
    assert can_be_stacked([plain, plain])
    for others in ([plain], [plain, dropped], [fewer, down], [dropped, fewer], [dora, dora]):
        assert not can_be_stacked(others)
    one, two = (FusedRows.of([rows(0, 0), rows(seed, 0)], [[None], [None]]) for seed in (0, 1))
    assert one.are_alike
    assert not two.are_alike


def compare_with_runs_alone(runs, prefix, texts=None, stack=None):
    texts = [rows(seed, prefix) for seed in range(len(runs))] if texts is None else texts
    alone = [learn(run, seed, prefix, texts[seed]) for seed, run in enumerate(runs)]
    inputs = [ForwardInput(run.fast_layers, texts[seed], None, seed) for seed, run in enumerate(runs)]
    states = fused_forward(inputs, stack)
    losses = []
    for seed, own in enumerate(states):
        weights = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed))
        losses.append((own * weights).sum())
    for run in runs:
        for parameter in adapter(run):
            parameter.grad = None
    sum(losses).backward()
    for run, loss, expected in zip(runs, losses, alone, strict=True):
        assert_alike([{"loss": loss.detach()} | gradients_of(run)], [expected])


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("prefix", [0, 3])
def test_below_the_first_adapter_the_same_rows_are_computed_once(base, monkeypatch, prefix, trains):
    tokens, original = [], fused_forward_module.fused_layer

    def layer(hidden, *rest):
        tokens.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(fused_forward_module, "fused_layer", layer)
    runs = adapted(base, [ADAPTERS[2] | {"layers_to_transform": layers} for layers in ([1, 2], [2], [1], [2])])
    for run in runs:
        run.model.train(trains)
    caches = [[PrefixCache() if not trains else None for _ in runs] for _ in range(2)]
    for batch, seeds in enumerate([(0, 0, 1, 0), (2, 3, 3, 3)]):
        texts = [rows(seed, prefix) for seed in seeds]
        with torch.set_grad_enabled(trains):
            expected = [
                fused_forward([ForwardInput(run.fast_layers, text, cache, 5)])[0]
                for run, text, cache in zip(runs, texts, caches[0], strict=True)
            ]
            tokens.clear()
            inputs = [
                ForwardInput(run.fast_layers, text, cache, 5)
                for run, text, cache in zip(runs, texts, caches[1], strict=True)
            ]
            found = fused_forward(inputs)
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=rounding(float(other.detach().abs().max())))
        sizes = [len(text.ids) - (prefix if batch and not trains else 0) for text in texts]
        once = sum(dict(zip(seeds, sizes, strict=True)).values())
        assert tokens == [once, sum(sizes), sum(sizes)]
        if trains:
            weights = torch.randn(5, 32, generator=torch.Generator().manual_seed(batch))
            parameters = [parameter for run in runs for parameter in adapter(run)]
            gradients = [
                torch.autograd.grad(sum((own * weights).sum() for own in states), parameters)
                for states in (found, expected)
            ]
            agree(*({str(number): part for number, part in enumerate(parts)} for parts in gradients))


def test_what_is_recorded_does_not_depend_on_which_rows_are_the_same(base, monkeypatch):
    tokens, original = [], fused_forward_module.fused_layer

    def layer(hidden, *rest):
        tokens.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(fused_forward_module, "fused_layer", layer)
    runs = adapted(base, [ADAPTERS[2] | {"layers_to_transform": [2]}] * 2)
    text = rows(0, 0)
    fused_forward([ForwardInput(run.fast_layers, text, None, 5) for run in runs], as_one=True)
    assert tokens == [2 * len(text.ids)] * 3


def test_states_that_are_known_are_given_once(runs):
    run, text = runs[0], rows(0, 0)
    states = run.fast_layers(text).detach()
    with reading(states):
        assert run.hidden(text) is states
        with pytest.raises(RuntimeError, match="reads its rows more than once"):
            run.hidden(text)
    assert run.hidden(text) is not states


def test_what_one_run_reads_does_not_enter_another(runs):
    inputs = [ForwardInput(run.fast_layers, rows(seed, 0), None, seed) for seed, run in enumerate(runs)]
    states = fused_forward(inputs)
    gradients = torch.autograd.grad(states[0].sum(), adapter(runs[1]), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def steps_of(run, results, name, count=3, fails_at=None):
    """Return the work of a run: some steps, whose losses and gradients are noted."""

    def work():
        for step in range(count):
            if step == fails_at:
                raise ValueError("absurd")
            results.setdefault(name, []).append(learn(run, 10 * name + step))

    def guarded():
        try:
            work()
        except Exception as error:
            results.setdefault(name, []).append(error)

    return guarded


def test_all_runs_read_their_first_batches_together(runs, monkeypatch):
    """The first pass says how much room there is; the runs that begin then are not a step behind for ever."""
    passes, original = [], multi_run.fused_forward

    def forward(inputs):
        passes.append([given.seed % 10 for given in inputs])
        return original(inputs)

    monkeypatch.setattr(multi_run, "fused_forward", forward)
    results = {}
    RunScheduler(CPU, 4).run_all([steps_of(run, results, name) for name, run in enumerate(runs[:4])])
    assert passes == [[0] * 2, *([step] * 4 for step in range(3))]
    assert all(len(steps) == 3 for steps in results.values())


def assert_alike(found, expected):
    """Compare the losses and gradients of steps."""
    for one, other in zip(found, expected, strict=True):
        agree(one, other)


def run_all(runs, most=16, **options):
    results = {}
    scheduler = RunScheduler(CPU, most)
    scheduler.run_all([steps_of(run, results, name, **options.get(str(name), {})) for name, run in enumerate(runs)])
    return results, scheduler


@pytest.fixture
def alone(runs):
    results = {}
    for name, run in enumerate(runs):
        steps_of(run, results, name)()
    return results


def test_runs_under_a_scheduler_do_what_they_do_alone(runs, alone):
    results, scheduler = run_all(runs)
    assert scheduler.largest_pass == len(runs)
    for name in alone:
        assert_alike(results[name], alone[name])


def test_a_run_that_fails_leaves_the_others_as_they_are(runs, alone):
    results, _ = run_all(runs, **{"1": {"fails_at": 1}})
    assert isinstance(results[1][-1], ValueError)
    for name in (0, 2, 3):
        assert_alike(results[name], alone[name])


def test_a_run_that_ends_gives_its_place_to_the_next(runs, alone):
    results, scheduler = run_all(runs, most=2, **{"0": {"count": 1}})
    assert scheduler.largest_pass == 2
    assert_alike(results[0], alone[0][:1])
    for name in (1, 2, 3):
        assert_alike(results[name], alone[name])


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_splits_the_pass_and_changes_no_number(runs, alone, monkeypatch, where):
    sizes = []
    read, grad = multi_run.fused_forward, torch.autograd.grad

    def forward(inputs):
        sizes.append(len(inputs))
        if where == "forward" and len(inputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(inputs)

    def backward(outputs, *rest, **more):
        if where == "backward" and isinstance(outputs, list) and len(outputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grad(outputs, *rest, **more)

    monkeypatch.setattr(multi_run, "fused_forward", forward)
    monkeypatch.setattr(torch.autograd, "grad", backward)
    results, _ = run_all(runs)
    assert max(sizes) > 1
    assert sizes[-1] <= 2
    for name in alone:
        assert_alike(results[name], alone[name])


def test_a_run_whose_own_batch_does_not_fit_is_told_so(runs, alone, monkeypatch):
    read = multi_run.fused_forward

    def forward(inputs):
        if any(one.layers is runs[2].fast_layers for one in inputs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(inputs)

    monkeypatch.setattr(multi_run, "fused_forward", forward)
    results, _ = run_all(runs)
    assert isinstance(results[2][-1], torch.OutOfMemoryError)
    for name in (0, 1, 3):
        assert_alike(results[name], alone[name])


def test_memory_bounds_how_many_runs_begin(runs, alone, monkeypatch):
    monkeypatch.setattr(multi_run, "free_memory_gib", lambda _: 0.0)
    results, scheduler = run_all(runs)
    assert scheduler.largest_pass == multi_run.FIRST
    for name in alone:
        assert_alike(results[name], alone[name])


def test_each_run_finds_the_state_of_the_process_as_it_left_it(runs):
    seen = {}

    def work(name, run):
        def live():
            torch.manual_seed(name)
            first = torch.rand(3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if name else "error")
                learn(run, name)
                torch.manual_seed(name + 100)
                before = list(warnings.filters)
                learn_state = torch.get_rng_state()
                with torch.no_grad():
                    run.hidden(rows(name, 0))  # all meet, and each draws nothing
                assert torch.equal(torch.get_rng_state(), learn_state)
                assert warnings.filters == before
            seen[name] = first

        return live

    outside, threads = list(warnings.filters), set(threading.enumerate())
    RunScheduler(CPU, 4).run_all([work(name, run) for name, run in enumerate(runs)])
    assert len(seen) == len(runs)
    assert warnings.filters == outside
    assert set(threading.enumerate()) <= threads


def test_what_is_computed_unfused_waits_for_nobody(runs):
    order = []

    def alone_first():
        with unfused():
            order.append(float(learn(runs[0], 0)["loss"]))
        order.append("met")
        learn(runs[0], 1)

    def other():
        order.append("other")
        learn(runs[1], 2)

    RunScheduler(CPU, 2).run_all([alone_first, other])
    assert [type(entry).__name__ for entry in order] == ["float", "str", "str"]


def test_an_interrupt_ends_every_run(runs, monkeypatch):
    ended = []

    def work(name, run):
        def live():
            try:
                for step in range(100):
                    learn(run, step)
            except Interrupted:
                ended.append(name)
                raise

        return live

    original = RunScheduler._backward
    count = []

    def interrupted(self, members):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        original(self, members)

    monkeypatch.setattr(RunScheduler, "_backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunScheduler(CPU, 4).run_all([work(name, run) for name, run in enumerate(runs)])
    assert sorted(ended) == [0, 1, 2, 3]
