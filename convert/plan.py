"""The plan of a conversion. It needs the source's configuration only, not its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from hybridize.checkpoints.formats import Fit, Format
from hybridize.checkpoints.formats.choose_format import choose_format
from hybridize.checkpoints.formats.stock_hybrid import pad_heads
from hybridize.conversion.config import ConvertConfig
from hybridize.errors import InputError
from hybridize.modeling.layers.kinds import ATTENTION, MAMBA
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.layout import Layout
from hybridize.modeling.model_spec import ModelSpec

Chooser = Callable[[int, int], tuple[int, ...]]
"""Takes the number of attention blocks and the number to keep; returns which ones to keep, counted
from 0."""


@dataclass(frozen=True)
class Plan:
    """What a conversion will do.

    Attributes:
        source: the configuration of the source.
        target: the configuration of the result, before the format adapts it.
        layout: the layout of the result, including which blocks are swapped.
        format: the on-disk architecture of the result.
        fit: the target as that format stores it.
        reason: why this format was chosen.
    """

    source: ModelSpec
    target: ModelSpec
    layout: Layout
    format: Format
    fit: Fit
    reason: str

    @property
    def kept(self) -> tuple[int, ...]:
        """The attention blocks that stay, counted among the source's attention blocks from 0."""
        attention = Layout(self.source.layout).indices(ATTENTION)
        return tuple(i for i, index in enumerate(attention) if index not in self.layout.swapped)


@dataclass(frozen=True)
class MambaChoice:
    """The options for the sizes of new blocks.

    Attributes:
        groups: number of groups of heads; a group shares B and C. ``"heads"`` (one group per
            query head), ``"kv"`` (one group per key/value head), or a number.
        expand: number of Mamba-2 heads per query head, 1 or 2.
        d_state: state size per head; the attention's head dim if None.
        proj_bias: whether the projections have biases. Without a bias, the gate is closed until
            the block is calibrated.
    """

    groups: str = "kv"
    expand: int = 1
    d_state: int | None = None
    proj_bias: bool = True

    @classmethod
    def from_config(cls, config: ConvertConfig) -> Self:
        """Return the choice of these options. Random blocks have no biases."""
        biases = config.ssm_bias and config.init != "random"
        return cls(config.ssm_groups, config.ssm_expand, config.d_state, biases)


def plan_conversion(
    source: ModelSpec,
    *,
    attention: str | None = None,
    keep: tuple[int, ...] | None = None,
    pattern: str | None = None,
    mamba: MambaChoice | None = None,
    format_name: str = "auto",
    choose: Chooser | None = None,
) -> Plan:
    """Choose the attention blocks to swap, the sizes of the new blocks, and the format.

    At most one of ``attention``, ``keep`` and ``pattern`` is given. Without any, a quarter of the
    attention blocks stays.

    Args:
        source: the model's configuration.
        attention: how many attention blocks to keep: a number or a percentage like ``25%``.
        keep: the attention blocks to keep, counted among the attention blocks from 0.
        pattern: the layout of the result.
        mamba: sizes of the new blocks.
        format_name: a format, or ``auto`` for the first one that stores the result exactly.
        choose: chooses the blocks that ``attention`` keeps; `keep_uniform` if None.

    Raises:
        InputError: the options contradict each other, the model, or the format.
    """
    layout = _choose_layout(Layout(source.layout), attention, keep, pattern, choose or keep_uniform)
    blocks = list(source.blocks)
    for index in layout.swapped:
        sizes = blocks[index]
        assert isinstance(sizes, AttentionSizes)
        blocks[index] = mamba_sizes(sizes, source.hidden_size, mamba or MambaChoice())
    target = source.replace_blocks(blocks)
    format_, fit, reason = choose_format(target, format_name)
    return Plan(source, target, layout, format_, fit, reason)


_LARGEST_STATE = 1 << 16
"""The largest accepted state size, far above that of any kernel."""


def keep_uniform(count: int, keep: int) -> tuple[int, ...]:
    """Choose ``keep`` of ``count`` attention blocks, evenly spaced.

    This is Nemotron-H's rule (arXiv 2504.03624, section 2.1): the first and the last block are
    swapped, and the kept ones are evenly spaced between them. If all blocks but one are kept, only
    the first one is swapped.
    """
    if keep >= count:
        return tuple(range(count))
    if keep == count - 1:
        return tuple(range(1, count))
    inner = count - 2
    return tuple(1 + (2 * i + 1) * inner // (2 * keep) for i in range(keep))


def mamba_sizes(attention: AttentionSizes, hidden: int, choice: MambaChoice) -> MambaSizes:
    """Return the sizes of the Mamba-2 block that replaces an attention block.

    The new block has the attention's heads and head dim. If the heads together are narrower than
    the hidden size, heads are added, because stock formats support only whole multiples of the
    hidden size.

    Raises:
        InputError: the number of groups does not divide the heads, or the state is too large.
    """
    padded = pad_heads(attention, hidden)
    heads = padded.num_heads
    if choice.groups == "heads":
        groups = heads
    elif choice.groups == "kv":
        groups = padded.num_kv_heads
    else:
        groups = int(choice.groups) if choice.groups.isdecimal() else 0
        if groups < 1 or heads % groups:
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise InputError(
                f"`ssm_groups={choice.groups}`: choose heads, kv, or a number that divides the "
                f"{heads} heads: {divisors}"
            )
    if choice.d_state is not None and not 0 < choice.d_state <= _LARGEST_STATE:
        raise InputError(f"`d_state={choice.d_state}`: choose from 1 to {_LARGEST_STATE}")
    return MambaSizes(
        num_heads=heads * choice.expand,
        head_dim=attention.head_dim,
        n_groups=groups,
        d_state=choice.d_state or attention.head_dim,
        proj_bias=choice.proj_bias,
    )


def _choose_layout(
    source: Layout,
    attention: str | None,
    keep: tuple[int, ...] | None,
    pattern: str | None,
    choose: Chooser,
) -> Layout:
    options = {"`attention`": attention, "`keep`": keep, "`pattern`": pattern}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other; give one of them")
    if pattern is not None:
        return _from_pattern(source, pattern)
    attention_indices = source.indices(ATTENTION)
    count = len(attention_indices)
    if not attention_indices:
        raise InputError("the model has no attention blocks to convert")
    if keep is None:
        keep = choose(count, _parse_attention(attention or "25%", count))
    outside = [index for index in keep if not 0 <= index < count]
    if outside:
        raise InputError(
            f"`keep={outside[0]}`: no such attention block; the model has {count}, "
            f"numbered 0 to {count - 1}"
        )
    return source.swap({index for i, index in enumerate(attention_indices) if i not in keep})


def _parse_attention(text: str, count: int) -> int:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if percent and 0 <= value <= 100:
        # Rounded to the nearest number, but at least 1 unless the percentage is 0.
        return 0 if value == 0 else max(1, int(count * value / 100 + 0.5))
    if not percent and 0 <= value <= count:
        return int(value)
    raise InputError(
        f"`attention={text}`: give how many of the {count} attention blocks to keep, "
        f"0 to {count}, or a percentage like 25%"
    )


def _from_pattern(source: Layout, pattern: str) -> Layout:
    try:
        wanted = Layout(pattern)
    except ValueError as error:
        raise InputError(f"`pattern`: {error}") from None
    if len(wanted) != len(source):
        raise InputError(
            f"`pattern` has {len(wanted)} blocks, but the model has {len(source)}: {source.pattern}"
        )
    swapped = set()
    for index, (old, new) in enumerate(zip(source, wanted, strict=True)):
        if (old, new) == (ATTENTION, MAMBA):
            swapped.add(index)
        elif old != new:
            raise InputError(
                f"`pattern`: block {index} is {old!r} in the model and {new!r} in the pattern; "
                "only * can become M"
            )
    return source.swap(swapped)
