"""Ridge regression from sums over tokens, which are collected batch by batch."""

import torch
from torch import nn

from hybridize.errors import HybridizeError


class Moments:
    """Sums over tokens, in float64, that are enough to solve least-squares regressions.

    All tensors may have leading dimensions: one regression for each index. Features and targets
    are broadcast over them.

    Args:
        intercept: whether the regressions have an intercept.
        products: the dtype in which the sums over one batch are computed. float32 is faster, and
            is enough to compare features of a few thousand tokens.
    """

    def __init__(self, *, intercept: bool = True, products: torch.dtype = torch.float64) -> None:
        self._intercepts, self._products = int(intercept), products
        self._xx: torch.Tensor | float = 0.0
        self._xy: torch.Tensor | float = 0.0
        self._yy: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add features ``(…, tokens, n)`` and targets ``(…, tokens, m)`` to the sums."""
        x = nn.functional.pad(x.to(self._products), (0, self._intercepts), value=1.0)
        y = y.to(self._products)
        self._xx = self._xx + (x.mT @ x).double()
        self._xy = self._xy + (x.mT @ y).double()
        self._yy = self._yy + (y.mT @ y).double()

    def __add__(self, other: "Moments") -> "Moments":
        """Return the sums over the tokens of both."""
        total = Moments(intercept=bool(self._intercepts), products=self._products)
        total._xx, total._xy = self._xx + other._xx, self._xy + other._xy
        total._yy = self._yy + other._yy
        return total

    def solve(self, penalty: float) -> torch.Tensor:
        """Return the coefficients of the ridge regression, ``(…, n, m)``.

        An intercept is one more row, at the end. It has no penalty.

        Args:
            penalty: in units of the features' mean square.

        Raises:
            HybridizeError: the features are too large.
        """
        assert isinstance(self._xx, torch.Tensor)
        assert isinstance(self._xy, torch.Tensor)
        diagonal = self._xx.diagonal(dim1=-2, dim2=-1)
        diagonal = diagonal[..., : diagonal.shape[-1] - self._intercepts]
        ridge = (penalty * diagonal.mean(-1, keepdim=True)).expand_as(diagonal)
        ridge = nn.functional.pad(ridge, (0, self._intercepts))
        factor, failed = torch.linalg.cholesky_ex(self._xx + torch.diag_embed(ridge))
        if failed.any():
            raise HybridizeError(
                "calibration: the activations of an attention block are so large that no "
                "replacement can be fitted; look for damaged weights in the checkpoint"
            )
        return torch.cholesky_solve(self._xy, factor)

    def error(self, solution: torch.Tensor) -> torch.Tensor:
        """Return the sum over tokens of the error's outer product with itself, ``(…, m, m)``.

        Args:
            solution: coefficients, as `solve` returns them.
        """
        cross = solution.mT @ self._xy
        return self._yy - cross - cross.mT + solution.mT @ self._xx @ solution

    def power(self) -> torch.Tensor:
        """Return the sum over tokens of the target's squared norm, ``(…)``."""
        assert isinstance(self._yy, torch.Tensor)
        return self._yy.diagonal(dim1=-2, dim2=-1).sum(-1)
