"""Register ``model_type: "hybridize"`` with transformers' Auto classes, without importing them.

``import hybridize`` must be fast, so it cannot import transformers. `register` therefore waits
until transformers' two tables of model types exist, and then adds the names of our classes. If the
tables exist already, it adds the names at once.

It adds names, as transformers does for its own models, and not classes (``AutoConfig.register``).
Transformers looks a name up in the module ``transformers.models.MODEL_TYPE`` when it is first used.
For us that module is the package ``hybridize``, which imports its classes on first use. Importing
the classes earlier would fail: the tables are often created while the modules that our model is
built on are still being imported.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODEL_TYPE = "hybridize"


def register() -> None:
    """Add our classes to transformers' tables, now or when transformers creates them."""
    for name, add in _TABLES.items():
        if name in sys.modules:
            add(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _add_config(configuration_auto: ModuleType) -> None:
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = sys.modules["hybridize"]
    configuration_auto.CONFIG_MAPPING_NAMES[MODEL_TYPE] = "HybridConfig"


def _add_model(modeling_auto: ModuleType) -> None:
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MODEL_TYPE] = "HybridForCausalLM"
    # The mapping has a reversed copy of CONFIG_MAPPING_NAMES, which may be older than our entry.
    mapping = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    mapping._reverse_config_mapping["HybridConfig"] = MODEL_TYPE


_TABLES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _add_config,
    "transformers.models.auto.modeling_auto": _add_model,
}


class _AfterImport:
    """An import hook that calls a function right after one of the modules in `_TABLES` has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _TABLES else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _TABLES[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
