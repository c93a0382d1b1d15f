"""Transformer to hybrid: which blocks are swapped, what they start as, and the streaming of it.

The package can be called: ``hybridize.convert(...)`` is `hybridize.convert.convert.convert`,
as every command is a function of its name in ``hybridize``.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `hybridize.convert.convert.convert`."""
        from hybridize.convert.convert import convert

        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
