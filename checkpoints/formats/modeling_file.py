"""The modeling file that goes with hybridize's own architecture.

It is the model's modules, as they stand in this package, one after the other without the
imports between them: so it cannot drift from the code that is tested.
"""

import ast
from importlib import resources

MODELING_FILE = "modeling_hybridize.py"

_MODULES = (
    ("", "errors.py"),
    ("kernels", "reference/norm.py"),
    ("kernels", "reference/activation.py"),
    ("kernels", "reference/linear.py"),
    ("kernels", "reference/conv.py"),
    ("kernels", "reference/fp8.py"),
    ("kernels", "reference/ssd_step.py"),
    ("kernels", "reference/mamba2_step.py"),
    ("kernels", "eager/ssd_scan.py"),
    ("modeling", "layout.py"),
    ("modeling", "layers/sizes.py"),
    ("modeling", "rope_parameters.py"),
    ("modeling", "model_spec.py"),
    ("modeling", "config.py"),
    ("modeling", "packed_sequences.py"),
    ("modeling", "masks.py"),
    ("modeling", "cache/format.py"),
    ("modeling", "cache/hybrid.py"),
    ("modeling", "cache/compact.py"),
    ("modeling", "layers/context.py"),
    ("modeling", "layers/linear.py"),
    ("modeling", "layers/norm.py"),
    ("modeling", "layers/rope.py"),
    ("modeling", "layers/attention.py"),
    ("modeling", "layers/mamba2.py"),
    ("modeling", "layers/mlp.py"),
    ("modeling", "block.py"),
    ("modeling", "model.py"),
)

_HEADER = '''\
"""A hybrid of Mamba-2 and attention, written by hybridize (Apache-2.0).

This file lets transformers open the checkpoint beside it with trust_remote_code=True.
It is put together from hybridize's own modules, and needs torch and transformers only.
"""
'''


def modeling_source() -> str:
    """Return the text of the modeling file."""
    imports: dict[str, None] = {}  # ordered, each once
    bodies = []
    for package, path in _MODULES:
        source = (
            resources.files(f"hybridize.{package}".rstrip(".")).joinpath(path).read_text("utf-8")
        )
        body, needed = _without_imports(source)
        imports |= dict.fromkeys(needed)
        bodies.append(f"# {package or 'hybridize'}/{path}\n\n{body}")
    return "\n\n".join([_HEADER, "\n".join(imports), *bodies]) + "\n"


def _without_imports(source: str) -> tuple[str, list[str]]:
    """Take a module's docstring and imports off; return the rest and the foreign imports."""
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
