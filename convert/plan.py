"""Deciding what a conversion does, before anything is read or written but the configuration."""

from collections.abc import Callable
from dataclasses import dataclass

from hybridize.checkpoints.formats import Fit, Format
from hybridize.checkpoints.formats.choose import choose_format
from hybridize.checkpoints.formats.stock_hybrid import pad_heads
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.layout import ATTENTION, MAMBA, Layout

Chooser = Callable[[int, int], tuple[int, ...]]
"""Given how many attention blocks there are and how many stay: which ones, counted from 0."""


@dataclass(frozen=True)
class Plan:
    """What a conversion will do.

    Attributes:
        source: the model as it is.
        target: the model as it will be, before a format adapts it.
        layout: the target's layout, which knows the swapped blocks.
        format: what will be written.
        fit: the target as that format holds it.
        reason: why this format.
    """

    source: HybridConfig
    target: HybridConfig
    layout: Layout
    format: Format
    fit: Fit
    reason: str

    @property
    def kept(self) -> tuple[int, ...]:
        """Which attention blocks stay, counted among the source's attention blocks."""
        attention = Layout(self.source.layout).indices(ATTENTION)
        return tuple(i for i, block in enumerate(attention) if block not in self.layout.swapped)


@dataclass(frozen=True)
class MambaChoice:
    """The sizes of the new blocks, as a user gives them.

    Attributes:
        groups: ``"heads"`` or ``"kv"`` (as many B and C as the attention has query or
            key/value heads), or a number.
        expand: width in units of the attention's (1 or 2).
        d_state: state per head; the attention's head dim if None.
        proj_bias: whether the projections have biases; the attention initialization needs
            them to hold the gate open.
    """

    groups: str = "heads"
    expand: int = 1
    d_state: int | None = None
    proj_bias: bool = True


def plan_conversion(
    source: HybridConfig,
    *,
    attention: str | None = None,
    keep: tuple[int, ...] | None = None,
    pattern: str | None = None,
    mamba: MambaChoice | None = None,
    format_name: str = "auto",
    choose: Chooser | None = None,
) -> Plan:
    """Work out which attention blocks become Mamba-2, how large, and in which format.

    Args:
        source: the model's configuration.
        attention: how many attention blocks to keep: a number or a percentage like ``25%``.
        keep: which to keep, counted among the attention blocks from 0.
        pattern: the whole layout of the result. At most one of the three is given; without
            any, a quarter of the attention blocks stays.
        mamba: sizes of the new blocks.
        format_name: a format, or ``auto`` for the first that holds the result exactly.
        choose: which blocks ``attention`` keeps; `keep_uniform` if None.

    Raises:
        InputError: choices that contradict each other, the model, or the format.
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


_LARGEST_STATE = 1 << 16  # far beyond what any kernel takes


def keep_uniform(count: int, keep: int) -> tuple[int, ...]:
    """Spread ``keep`` attention blocks evenly over ``count`` places.

    Nemotron-H's rule (arXiv 2504.03624, section 2.1): the first mixer is Mamba-2, the last
    place is not attention, and the kept ones are evenly dispersed. Where more are kept than the
    inner places hold, the last place and then the first are used as well.
    """
    if keep >= count:
        return tuple(range(count))
    if keep == count - 1:
        return tuple(range(1, count))
    inner = count - 2
    return tuple(1 + (2 * i + 1) * inner // (2 * keep) for i in range(keep))


def mamba_sizes(attention: AttentionSizes, hidden: int, choice: MambaChoice) -> MambaSizes:
    """Return the sizes of the Mamba-2 block that takes an attention block's place.

    Heads and head dim follow the attention's. Heads narrower than the hidden size together are
    filled up with further ones, since stock formats know whole multiples only.

    Raises:
        InputError: a number of groups that does not divide the heads, or a state beyond measure.
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
    given = {"`attention`": attention, "`keep`": keep, "`pattern`": pattern}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} exclude each other; give one of them")
    if pattern is not None:
        return _from_pattern(source, pattern)
    places = source.indices(ATTENTION)
    if not places:
        raise InputError("the model has no attention blocks to convert")
    if keep is None:
        keep = choose(len(places), _parse_attention(attention or "25%", len(places)))
    outside = [index for index in keep if not 0 <= index < len(places)]
    if outside:
        raise InputError(
            f"`keep={outside[0]}`: no such attention block; the model has {len(places)}, "
            f"0 to {len(places) - 1}"
        )
    return source.swap({place for i, place in enumerate(places) if i not in keep})


def _parse_attention(text: str, count: int) -> int:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if percent and 0 <= value <= 100:
        # Rounded to the nearest, but what is not zero keeps at least one.
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
            f"`pattern` has {len(wanted)} blocks and the model {len(source)}: {source.pattern}"
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
