"""Makes transformers' Auto classes know ``model_type: "hybridize"``.

``AutoConfig.register`` and ``AutoModelForCausalLM.register`` want the classes themselves. Two
things stand against that here. ``import hybridize`` is to be quick, so it must not import
transformers. And when transformers' tables come to life later, our classes cannot be imported at
that moment: the tables are often reached half-way through the import of the very modules that our
model is built on (``transformers.models.llama.modeling_llama`` does so through
``modeling_layers``), or by somebody who wants only a tokenizer.

So the architecture is entered by *name*, as transformers enters its own: its tables map a model
type to the name of a class, which it looks up in ``transformers.models.<model type>`` on first
use. That module is, for us, the ``hybridize`` package, which imports its classes on first use too.
The names are entered at once where the tables are already there, and else right after the module
that holds them is first executed.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # slow to import for what it is: tempfile and more

MODEL_TYPE = "hybridize"


def _add_config(configuration_auto: ModuleType) -> None:
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = sys.modules["hybridize"]
    configuration_auto.CONFIG_MAPPING_NAMES[MODEL_TYPE] = "HybridConfig"


def _add_model(modeling_auto: ModuleType) -> None:
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MODEL_TYPE] = "HybridForCausalLM"
    # A copy of CONFIG_MAPPING_NAMES, which may have been taken before our entry was in there.
    mapping = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    mapping._reverse_config_mapping["HybridConfig"] = MODEL_TYPE


_ENTRIES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _add_config,
    "transformers.models.auto.modeling_auto": _add_model,
}


def announce() -> None:
    """Enter the architecture into transformers' tables, now or as soon as they exist."""
    for name, enter in _ENTRIES.items():
        if name in sys.modules:
            enter(sys.modules[name])
    if not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())


class _TableFinder:
    """Finds the modules that hold the tables, and has them filled once they are executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _ENTRIES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _TableLoader(spec.loader, _ENTRIES[fullname]))
        return spec


class _TableLoader:
    """The module's own loader, followed by one call with the finished module."""

    def __init__(self, loader: "Loader", enter: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._enter = enter

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Tracebacks and importlib.resources ask the module for its true loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._enter(module)
