"""``import hybridize``: its public names, and transformers' Auto classes."""

import subprocess
import sys

import pytest

import hybridize


def test_every_public_name_exists():
    for name in hybridize.__all__:
        assert getattr(hybridize, name) is not None
    assert set(hybridize.__all__) <= set(dir(hybridize))


def test_public_names_are_the_objects_of_their_modules():
    from hybridize.conversion.convert import convert
    from hybridize.modeling.layout import Layout

    assert hybridize.Layout is Layout
    assert callable(hybridize.convert)
    assert hybridize.conversion.convert.convert is convert


def test_import_hybridize_imports_neither_torch_nor_transformers():
    code = (
        "import sys, hybridize;"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'hybridize' has no attribute 'quantum'"):
        _ = hybridize.quantum


# Transformers' two tables of model types may be imported before hybridize, one before and one after
# it, or both after it, also in the middle of another import.
ORDERS = {
    "transformers first": "from transformers import AutoModelForCausalLM; import hybridize",
    "configurations first": "from transformers import AutoConfig; import hybridize",
    "hybridize first, a model next": "import hybridize; from transformers import LlamaForCausalLM",
    "our model first": "from hybridize.modeling.model import HybridForCausalLM",
}

OPEN_WITH_AUTO_CLASSES = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("hybridize")
assert type(config) is sys.modules["hybridize"].HybridConfig, type(config)
model_class = AutoModelForCausalLM._model_mapping[type(config)]
assert model_class is sys.modules["hybridize"].HybridForCausalLM, model_class
from transformers.models.auto import configuration_auto, modeling_auto
for module in (configuration_auto, modeling_auto):
    assert type(module.__spec__.loader).__name__ == "SourceFileLoader", module.__spec__
"""


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_the_architecture(order):
    code = ORDERS[order] + OPEN_WITH_AUTO_CLASSES
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_auto_tokenizer_does_not_import_the_model():
    code = (
        "import sys, hybridize; from transformers import AutoTokenizer;"
        "sys.exit('hybridize.modeling.model' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
