"""Ridge regression from sums over tokens, which are collected batch by batch."""

import torch
from torch import nn


class Moments:
    """Sums over tokens, in float64, that are enough to solve least-squares regressions.

    All tensors may have leading dimensions: one regression for each index.

    Args:
        intercept: whether the regressions have an intercept.
    """

    def __init__(self, *, intercept: bool = True) -> None:
        self._intercepts = int(intercept)
        self._xx: torch.Tensor | float = 0.0
        self._xy: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add features ``(…, tokens, n)`` and targets ``(…, tokens, m)`` to the sums."""
        x = nn.functional.pad(x.double(), (0, self._intercepts), value=1.0)
        self._xx = self._xx + x.mT @ x
        self._xy = self._xy + x.mT @ y.double()

    def solve(self, penalty: float) -> torch.Tensor:
        """Return the coefficients of the ridge regression, ``(…, n, m)``.

        An intercept is one more row, at the end. It has no penalty.

        Args:
            penalty: in units of the features' mean square.
        """
        assert isinstance(self._xx, torch.Tensor)
        assert isinstance(self._xy, torch.Tensor)
        diagonal = self._xx.diagonal(dim1=-2, dim2=-1)
        diagonal = diagonal[..., : diagonal.shape[-1] - self._intercepts]
        ridge = (penalty * diagonal.mean(-1, keepdim=True)).expand_as(diagonal)
        ridge = nn.functional.pad(ridge, (0, self._intercepts))
        factor = torch.linalg.cholesky(self._xx + torch.diag_embed(ridge))
        return torch.cholesky_solve(self._xy, factor)

    def error(self, solution: torch.Tensor, target_power: torch.Tensor) -> torch.Tensor:
        """Return the sum over tokens of the error's outer product with itself, ``(…, m, m)``.

        Args:
            solution: coefficients, as `solve` returns them.
            target_power: the sum over tokens of the target's outer product with itself.
        """
        cross = solution.mT @ self._xy
        return target_power - cross - cross.mT + solution.mT @ self._xx @ solution
