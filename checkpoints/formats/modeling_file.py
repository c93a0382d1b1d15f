"""The modeling file of checkpoints in hybridize's own architecture.

It consists of the modules of hybridize that the model needs, one after the other, without the
imports between them. So the file always contains the code that is tested.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

from hybridize.modeling.layers.kinds import LAYER_KINDS

MODELING_FILE = "modeling_hybridize.py"

_BEFORE_LAYERS = (
    "hybridize.errors",
    "hybridize.kernels.reference.norm",
    "hybridize.kernels.reference.activation",
    "hybridize.kernels.reference.linear",
    "hybridize.kernels.reference.packed_sequences",
    "hybridize.kernels.reference.conv",
    "hybridize.kernels.reference.fp8",
    "hybridize.kernels.reference.ssd_step",
    "hybridize.kernels.reference.mamba2_step",
    "hybridize.kernels.eager.ssd_scan",
    "hybridize.modeling.layers.kinds",
    "hybridize.modeling.layout",
    "hybridize.modeling.layers.sizes",
    "hybridize.modeling.rope_parameters",
    "hybridize.modeling.model_spec",
    "hybridize.modeling.config",
    "hybridize.modeling.packed_sequences",
    "hybridize.modeling.masks",
    "hybridize.modeling.cache.format",
    "hybridize.modeling.cache.growing",
    "hybridize.modeling.cache.hybrid",
    "hybridize.modeling.cache.compact",
    "hybridize.modeling.layers.context",
    "hybridize.modeling.layers.linear",
    "hybridize.modeling.layers.norm",
    "hybridize.modeling.layers.rope",
    "hybridize.modeling.layers.decode_attention",
)
_AFTER_LAYERS = ("hybridize.modeling.block", "hybridize.modeling.model")

_HEADER = '''\
"""A hybrid of Mamba-2 and attention, written by hybridize (Apache-2.0).

Transformers opens the checkpoint in this directory with it, if trust_remote_code=True.
It is assembled from hybridize's own modules and needs only torch and transformers.
"""
'''


def modeling_source() -> str:
    """Return the text of the modeling file."""
    imports: dict[str, None] = {}  # ordered, each once
    bodies = []
    targets = [target for kind in LAYER_KINDS.values() for target in (kind.sizes, kind.mixer)]
    layers = [target.partition(":")[0] for target in targets]
    for module in dict.fromkeys((*_BEFORE_LAYERS, *layers, *_AFTER_LAYERS)):
        body, needed = _without_imports(_source_of(module))
        imports |= dict.fromkeys(needed)
        bodies.append(f"# {module}\n\n{body}")
    return "\n\n".join([_HEADER, "\n".join(imports), *bodies]) + "\n"


def _source_of(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text("utf-8")


def _without_imports(source: str) -> tuple[str, list[str]]:
    """Return a module without its docstring and imports, and its imports of other packages."""
    lines = source.splitlines()
    needed = []
    for node in ast.parse(source).body:
        own = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hybridize")
        if isinstance(node, ast.Import | ast.ImportFrom):
            if not own:
                needed.append(ast.unparse(node))
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        end = node.end_lineno or node.lineno
        lines[node.lineno - 1 : end] = [""] * (end - node.lineno + 1)
    return "\n".join(lines).strip(), needed
