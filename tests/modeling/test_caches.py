"""Any cache of transformers works with the model, and imports flow one way."""

import ast
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from hybridize.modeling.cache.hybrid import HybridCache, as_hybrid_cache
from hybrids import LAYOUTS, build
from tiny import tokens

MODELING = Path(__file__).resolve().parents[2] / "modeling"


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_cache_of_transformers_gives_the_same_logits(name):
    model, ids = build(LAYOUTS[name]), tokens(2, 20)
    plain, hybrid = DynamicCache(config=model.config), HybridCache(model.config)
    for part in ids.split([9, 1, 1, 9], dim=1):
        output = model(part, cache=plain, use_cache=True)
        assert output.cache is plain
        assert torch.equal(output.logits, model(part, cache=hybrid).logits)
    assert as_hybrid_cache(plain).nbytes == hybrid.nbytes > 0


def imported(path: Path) -> set[str]:
    return {
        node.module or ""
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
    }


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("layers", ("hybridize.modeling.cache", "hybridize.modeling.model")),
        ("cache", ("hybridize.modeling.block", "hybridize.modeling.model")),
    ],
)
def test_layers_and_caches_do_not_import_upwards(folder, forbidden):
    paths = sorted((MODELING / folder).glob("*.py"))
    assert len(paths) > 4
    for path in paths:
        assert not [name for name in imported(path) if name.startswith(forbidden)], path.name
