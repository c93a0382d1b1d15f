"""Where two models begin to differ, in words."""

from hybridize.checkpoints.formats import Format
from hybridize.conversion.check_inputs import CheckInput
from hybridize.conversion.check_models import Computed, Reference, largest
from hybridize.errors import HybridizeError
from hybridize.modeling.layers.kinds import LAYER_KINDS
from hybridize.modeling.model_spec import ModelSpec

ADVICE = "please report this as a fault of hybridize; `check=False` converts without the check"


class Places:
    """Names what computes each of `Computed.states`, and the logits.

    Args:
        format_: the checkpoint's format.
        spec: the model, as the format stores it.
    """

    def __init__(self, format_: Format, spec: ModelSpec) -> None:
        self._layout, self._norms = spec.layout, format_.norm_names(spec)

    def name(self, index: int) -> str:
        """Return the name for an index of `Computed.states`; the logits are behind the last."""
        if index == 0:
            return "the embeddings"
        if index == len(self._norms):
            return "the last norm or the head"
        kind = LAYER_KINDS[self._layout[index - 1]].title
        return f"block {index - 1} ({kind}, {self._norms[index - 1].rpartition('.')[0]})"


def require_equal(
    reference: Reference, other: Computed, given: CheckInput, places: Places, who: str
) -> None:
    """Check that a model computes the same as the reference, within rounding.

    Not only the logits count: they do not show a fault in a block behind which another block's
    output was replaced.

    Args:
        reference: the reference.
        other: what the other model has computed.
        given: the input.
        places: names the model's blocks.
        who: the beginning of the error.

    Raises:
        HybridizeError: something differs by more than rounding. The message names the first block.
    """
    computed = reference.computed
    pairs = [*zip(other.states, computed.states, strict=True), (other.logits, computed.logits)]
    differences = [largest(mine - theirs) for mine, theirs in pairs]
    allowed = (*reference.states, reference.logits)
    wrong = [index for index, one in enumerate(differences) if not one <= allowed[index]]
    if not wrong:
        return
    what, index = ("logits", -1) if wrong[-1] == len(computed.states) else ("activations", wrong[0])
    raise HybridizeError(
        f"{who}: {what} differ by up to {differences[index]:.2g} on {given.name}, and rounding "
        f"explains {allowed[index]:.1g}; the first difference is in {places.name(wrong[0])}; "
        f"{ADVICE}"
    )


def require_finite(computed: Computed, given: CheckInput, places: Places, who: str) -> None:
    """Check that logits are finite.

    Args:
        computed: what a model has computed.
        given: the input.
        places: names the model's blocks.
        who: the beginning of the error.

    Raises:
        HybridizeError: they are not.
    """
    if computed.logits.isfinite().all():
        return
    finite = [bool(state.isfinite().all()) for state in computed.states]
    first = finite.index(False) if False in finite else len(finite)
    raise HybridizeError(
        f"{who}: the model computes NaN or infinity on {given.name}, first in "
        f"{places.name(first)}, although activations are float32; the weights are damaged or too "
        "large; `check=False` converts without the check"
    )
