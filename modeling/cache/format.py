"""The dtypes that a cache is stored in, as options name them. Imports no torch."""

from dataclasses import dataclass

from hybridize.errors import InputError

KV_DTYPES = ("auto", "fp8")
SSM_DTYPES = ("auto", "bfloat16", "fp8")


@dataclass(frozen=True)
class CacheFormat:
    """The dtypes of a model's cache.

    Attributes:
        kv: dtype of keys and values: ``fp8``, or ``auto`` for the dtype of the computation.
        ssm: dtype of SSM states: ``bfloat16``, ``fp8``, or ``auto`` for float32.

    Raises:
        InputError: another dtype.
    """

    kv: str = "auto"
    ssm: str = "auto"

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("kv_cache_dtype", self.kv, KV_DTYPES),
            ("ssm_cache_dtype", self.ssm, SSM_DTYPES),
        ):
            if value not in choices:
                raise InputError(f"`{option}={value}`: choose one of {', '.join(choices)}")

    @property
    def compact(self) -> bool:
        """Whether any part is stored in a smaller dtype than it is computed in."""
        return (self.kv, self.ssm) != ("auto", "auto")
