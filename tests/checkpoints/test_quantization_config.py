"""Reading ``quantization_config``: what changes the weights is understood or refused."""

from copy import deepcopy
from typing import Any

import pytest

from hybridize.checkpoints.quantization import read_quantization
from hybridize.compress.quantize.schemes import SCHEMES


def quantization_config() -> dict[str, Any]:
    return next(iter(SCHEMES.values())).config(["lm_head"])


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return the file of an FP8 model, with one value changed or added."""
    config = deepcopy(quantization_config())
    part = config
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return {"quantization_config": config}


GROUP = ("config_groups", next(iter(quantization_config()["config_groups"])))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kv_cache_scheme",), {"num_bits": 8, "type": "float", "dynamic": False}),
        (("sparsity_config",), {}),
        (("sparsity_config",), {"format": "dense"}),
        (("transform_config",), {}),
        (("quantization_status",), "frozen"),
        ((*GROUP, "output_activations"), None),
        ((*GROUP, "weights", "observer"), "mse"),
    ],
)
def test_what_changes_no_weight_is_accepted(path, value):
    assert read_quantization(changed(path, value)) == read_quantization(
        {"quantization_config": quantization_config()}
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sparsity_config",), {"format": "sparse-24-bitmask"}),
        (("transform_config",), {"config_groups": {"R1": {"type": "hadamard"}}}),
        ((*GROUP, "output_activations"), {"num_bits": 8, "type": "float"}),
        ((*GROUP, "weights", "symmetric"), False),
        ((*GROUP, "input_activations", "symmetric"), False),
        ((*GROUP, "weights", "rotation"), "hadamard"),
    ],
)
def test_what_changes_the_weights_is_refused(path, value):
    with pytest.raises(ValueError, match=r"quantization_config is not .*; use the unquantized"):
        read_quantization(changed(path, value))
