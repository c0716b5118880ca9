"""LoRA that begins with what training rows do in a model, or with what packing its weights has lost.

EVA (Paischer et al. 2024, arXiv:2410.07170): A holds the directions in which the inputs of a layer vary most, B is 0.
    Ranks stay as configured (the paper's rho is 1). The principal components are exact, where PEFT's are updated batch
    by batch until they stay the same, which on few rows may never be.
CorDA (Yang et al. 2024, arXiv:2406.05223; the mode for new tasks): B A is the part of a weight that counts most for the
    inputs of its layer, and is taken out of it; by PEFT.
LoRA-GA (Wang et al. 2024, arXiv:2407.05000): the first step goes where that of full fine-tuning would, by the singular
    vectors of the gradient; B A is taken out of the weight; by PEFT.
LoftQ (Li et al. 2023, arXiv:2310.08659; one iteration): with the scale s of LoRA, s B A is the best approximation of
    W - Q, what a weight loses when it is packed to Q. PEFT's own leaves s out.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sentexp.data.batch import Padded


@dataclass(kw_only=True, slots=True)
class StartFromData:
    """What `peft.init=eva|corda|lora_ga|loftq` looks at.

    `rows` are training texts, each of one row and so without padding, and their classes, shape (1,). `classifier` is
    a scorer over the model; `whole` returns the model with its weights as they were before packing.
    """

    init: str
    rows: Sequence[tuple[Padded, Tensor]]
    classifier: nn.Module
    whole: Callable[[], nn.Module]

    def look(self, model: nn.Module, config: Any) -> None:
        """Keep in the modules of a model what PEFT reads there when it adds the adapter.

        Args:
            model: without an adapter.
            config: PEFT's, of the adapter.
        """
        from peft.tuners.lora.corda import preprocess_corda
        from peft.tuners.lora.loraga import preprocess_loraga

        if self.init not in ("corda", "lora_ga"):
            return
        training = model.training
        with _undisturbed():
            if self.init == "corda":
                preprocess_corda(model, config, run_model=self._score)
            else:
                preprocess_loraga(model, config, train_step=self._differentiate)
        model.train(training)

    def begin(self, model: nn.Module) -> None:
        """Write the first values of an adapter that PEFT leaves to others.

        Args:
            model: with the adapter.
        """
        adapted = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
        if self.init == "eva":
            training = model.training
            model.train(False)
            with _undisturbed(), torch.no_grad():
                _begin_at_inputs(adapted, self._score)
            model.train(training)
        if self.init == "loftq":
            with _undisturbed():
                whole = self.whole()
            for path, module in adapted.items():
                _make_up_for_packing(module, whole.get_submodule(path.removeprefix("base_model.model.")))

    def _score(self) -> None:
        for texts, _ in self.rows:
            self.classifier(texts)

    def _differentiate(self) -> None:
        for texts, targets in self.rows:
            self.classifier.losses(texts, targets).mean().backward()  # type: ignore[operator]


def _begin_at_inputs(adapted: dict[str, Any], score: Callable[[], None]) -> None:
    """Let the rows of A be the first principal components of a layer's inputs.

    Layers that read the same one after the other, as q, k and v do, share them.
    """
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}
    leaders: dict[str, str] = {}
    last: list[Any] = ["", None]

    def hook(path: str) -> Callable[..., None]:
        def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0] is last[1]:
                leaders[path] = leaders[last[0]]
                return
            last[:] = path, given[0]
            leaders[path] = path
            states = given[0].flatten(0, -2).float()
            gram, total, count = sums.get(path, (0, 0, 0))
            sums[path] = gram + states.mT @ states, total + states.sum(0), count + len(states)

        return add

    handles = [module.register_forward_pre_hook(hook(path)) for path, module in adapted.items()]
    try:
        score()
    finally:
        for handle in handles:
            handle.remove()
    vectors = {path: _components(*of_path) for path, of_path in sums.items()}
    for path, module in adapted.items():
        matrix = module.lora_A["default"].weight
        matrix.copy_(vectors[leaders[path]][: len(matrix)])


def _components(gram: Tensor, total: Tensor, count: int) -> Tensor:
    """Return the principal components of states, the largest first, one in each row; of two signs one is chosen."""
    mean = total.double() / count
    covariance = gram.double() / count - mean[:, None] * mean
    vectors: Tensor = torch.linalg.eigh(covariance)[1].flip(1).mT
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return signs * vectors


@torch.no_grad()
def _make_up_for_packing(module: Any, whole: Any) -> None:
    """Let s B A be the part of largest singular values of what a weight has lost."""
    from peft.utils.integrations import dequantize_bnb_weight

    layer = module.get_base_layer()
    packed = layer.weight.detach()
    if not packed.dtype.is_floating_point:  # else it was unpacked for the run, as `model.keep_dequantized` says
        packed = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    packed = packed.float()
    weight = whole.weight.detach().to(packed.device).float()
    lost = (weight.mT if type(whole).__name__ == "Conv1D" else weight) - packed
    left, values, right = torch.linalg.svd(lost, full_matrices=False)
    rank, roots = module.r["default"], values.sqrt()
    module.lora_A["default"].weight.copy_(roots[:rank, None] * right[:rank])
    module.lora_B["default"].weight.copy_(left[:, :rank] * roots[:rank] / module.scaling["default"])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Look without a change to what is drawn afterwards, and without a warning of hooks that is for others."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.manual_seed(0)
        yield
