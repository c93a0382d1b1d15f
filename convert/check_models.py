"""Running a model for the check, and recording what it computes.

Every block begins with a norm, in every architecture. So the inputs of the norms are the residual
stream behind each block, both in transformers' models and in hybridize's.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridize.checkpoints.formats import Format
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.stock_model import load_stock_model, quiet_transformers
from hybridize.console import console
from hybridize.conversion.check_inputs import LENGTH, CheckInput
from hybridize.modeling.model_spec import ModelSpec

EPSILON = torch.finfo(torch.float32).eps

MARGIN = 16
"""How many times more than measured rounding may change a result.

Two correct implementations add the same numbers in another order. In the tests of all formats, this
changes less than 4 times the measured rounding. A wrong field of a config changes the logits by far
more, or by less than rounding does, and then it does no harm.
"""


@dataclass(frozen=True)
class Computed:
    """What a model computes from one input, at its last `LENGTH` tokens.

    Attributes:
        logits: ``(tokens, vocab)``.
        states: ``(blocks + 1, tokens, hidden)``, the embeddings and the output of every block.
    """

    logits: torch.Tensor
    states: torch.Tensor


@dataclass(frozen=True)
class Reference:
    """What a model computes, and how far rounding may change it.

    The models compute in float32, whatever the dtype of the weights, because rounding to bfloat16
    would hide most mistakes. How much the rounding of float32 changes depends on the model: it
    grows with the depth, and with the size of the activations. So it is measured: the model runs a
    second time, and each input of a norm is changed by one unit in the last place, up or down at
    random.

    Attributes:
        computed: the result.
        logits: how far a logit may differ.
        states: how far a value may differ, for each of the states.
    """

    computed: Computed
    logits: float
    states: tuple[float, ...]


class CheckedModel:
    """A model whose residual stream is recorded.

    Args:
        model: the model, in float32.
        norms: the norm of every block, in order, and the last norm.
    """

    def __init__(self, model: Any, norms: list[nn.Module]) -> None:
        self.model, self._norms = model, norms

    @classmethod
    def in_transformers(cls, directory: Path, format_: Format, spec: ModelSpec) -> "CheckedModel":
        """Open a checkpoint with transformers' own class.

        Raises:
            Exception: whatever transformers raises.
        """
        model = load_stock_model(directory)
        # Tensors on disk may have another prefix than modules in memory: backbone. and model.
        names = [name.partition(".")[2] for name in format_.norm_names(spec)]
        return cls(model, [model.base_model.get_submodule(name) for name in names])

    @classmethod
    def in_hybridize(cls, directory: Path) -> "CheckedModel":
        """Open a checkpoint with hybridize.

        Raises:
            InputError: it cannot be read.
        """
        with console.silence():
            model = load_model(directory, dtype=torch.float32)
        norms: list[nn.Module] = [block.norm for block in model.model.blocks]
        return cls(model, [*norms, model.model.norm])

    @torch.no_grad()
    def free(self) -> None:
        """Free the memory of the weights; the model cannot be used afterwards.

        Models refer to themselves, so that ``del`` would free them at some later time.
        """
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = tensor.new_empty(0)

    @torch.no_grad()
    def round_weights(self, dtype: torch.dtype | None) -> bool:
        """Round all weights to a dtype, if there is one, and keep them in float32.

        Returns:
            Whether there is one.
        """
        if dtype is not None:
            for parameter in self.model.parameters():
                parameter.copy_(parameter.to(dtype))
        return dtype is not None

    @torch.no_grad()
    def compute(
        self,
        given: CheckInput,
        *,
        rounding: bool = False,
        outputs: Mapping[int, torch.Tensor] | None = None,
    ) -> Computed:
        """Run the model.

        Args:
            given: the input.
            rounding: change each input of a norm by one unit in the last place.
            outputs: replaces the outputs of some blocks, by index: ``(tokens, hidden)``. Only for
                hybridize's models.
        """
        states: list[torch.Tensor] = []
        generator = torch.Generator().manual_seed(0)

        def observe(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            x, *others = arguments
            states.append(x[0, -LENGTH:].float().clone())
            if not rounding:
                return None
            signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
            return (x * (1 + EPSILON * signs), *others)

        options: dict[str, Any] = {"use_cache": False}
        if given.positions is not None:
            options["position_ids"] = given.positions
        if not given.is_whole:  # not every class of transformers has this argument
            options["logits_to_keep"] = LENGTH
        with ExitStack() as stack, quiet_transformers():
            for norm in self._norms:
                stack.callback(norm.register_forward_pre_hook(observe).remove)
            for index, output in (outputs or {}).items():
                block = self.model.model.blocks[index]
                replace = block.register_forward_hook(lambda *_, x=output: x[None])
                stack.callback(replace.remove)
            logits = self.model(given.ids, **options).logits
        return Computed(logits[0, -LENGTH:].float(), torch.stack(states))

    def reference(self, given: CheckInput) -> Reference:
        """Run the model, and measure what rounding changes."""
        computed, rounded = self.compute(given), self.compute(given, rounding=True)
        states = zip(computed.states, rounded.states, strict=True)
        return Reference(
            computed,
            _allowed(computed.logits, rounded.logits),
            tuple(_allowed(exact, changed) for exact, changed in states),
        )


def largest(values: torch.Tensor) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return float(values.abs().max())


def _allowed(exact: torch.Tensor, rounded: torch.Tensor) -> float:
    return MARGIN * (largest(rounded - exact) + EPSILON * largest(exact))
