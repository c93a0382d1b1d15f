"""``import hybridize``: the names it promises, and transformers' Auto classes."""

import subprocess
import sys

import pytest

import hybridize


def test_every_promised_name_is_there():
    for name in hybridize.__all__:
        assert getattr(hybridize, name) is not None
    assert set(hybridize.__all__) <= set(dir(hybridize))


def test_names_come_from_their_homes():
    from hybridize.conversion.convert import convert
    from hybridize.modeling.layout import Layout

    assert hybridize.Layout is Layout
    assert callable(hybridize.convert)
    assert hybridize.conversion.convert.convert is convert


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'hybridize' has no attribute 'quantum'"):
        _ = hybridize.quantum


# Orders in which a program may come by hybridize and by transformers' two tables: these may be
# there already, or one of them, or be reached half-way through the import of something else.
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
assert "TableLoader" not in repr([m.__spec__.loader for m in (configuration_auto, modeling_auto)])
"""


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_the_architecture(order):
    code = ORDERS[order] + OPEN_WITH_AUTO_CLASSES
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_tokenizer_alone_does_not_bring_in_the_model():
    code = (
        "import sys, hybridize; from transformers import AutoTokenizer;"
        "sys.exit('hybridize.modeling.model' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
