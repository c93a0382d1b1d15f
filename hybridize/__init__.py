"""Turn a pretrained Transformer checkpoint into a fast Mamba-2 hybrid.

The commands of the ``hybridize`` tool are functions here, with the same options; ``hybridize eval``
is `evaluate`.
``import hybridize`` is fast: it imports neither torch nor transformers, and each name is imported
when it is first used. It also registers ``model_type: "hybridize"`` with transformers' Auto
classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridize import _autoclasses
from hybridize.errors import HybridizeError, InputError

if TYPE_CHECKING:
    from hybridize.checkpoints.load import load_model, load_tokenizer
    from hybridize.compress.distill.distill import distill
    from hybridize.compress.prune.prune import prune
    from hybridize.compress.quantize.quantize import quantize
    from hybridize.conversion.convert import convert
    from hybridize.evals.bench.bench import bench
    from hybridize.evals.bench.predict import predict
    from hybridize.evals.evaluate import evaluate
    from hybridize.evals.report.report import report
    from hybridize.exporters.export import export
    from hybridize.inspection.inspect import inspect
    from hybridize.inspection.verify import verify
    from hybridize.modeling.cache.hybrid import HybridCache
    from hybridize.modeling.config import HybridConfig
    from hybridize.modeling.layout import Layout
    from hybridize.modeling.model import HybridForCausalLM

    __version__: str

__all__ = [
    "HybridCache",
    "HybridConfig",
    "HybridForCausalLM",
    "HybridizeError",
    "InputError",
    "Layout",
    "__version__",
    "bench",
    "convert",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load_model",
    "load_tokenizer",
    "predict",
    "prune",
    "quantize",
    "report",
    "verify",
]

_MODULES = {
    "HybridCache": "hybridize.modeling.cache.hybrid",
    "HybridConfig": "hybridize.modeling.config",
    "HybridForCausalLM": "hybridize.modeling.model",
    "Layout": "hybridize.modeling.layout",
    "bench": "hybridize.evals.bench.bench",
    "convert": "hybridize.conversion.convert",
    "distill": "hybridize.compress.distill.distill",
    "evaluate": "hybridize.evals.evaluate",
    "export": "hybridize.exporters.export",
    "inspect": "hybridize.inspection.inspect",
    "load_model": "hybridize.checkpoints.load",
    "load_tokenizer": "hybridize.checkpoints.load",
    "predict": "hybridize.evals.bench.predict",
    "prune": "hybridize.compress.prune.prune",
    "quantize": "hybridize.compress.quantize.quantize",
    "report": "hybridize.evals.report.report",
    "verify": "hybridize.inspection.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hybridize")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_autoclasses.register()
