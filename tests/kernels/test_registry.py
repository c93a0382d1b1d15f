"""Declarations, implementations and the registry agree, and a kernel can be added from outside."""

import importlib
import inspect
import textwrap

import pytest
import torch

from hybridize import kernels
from hybridize.errors import InputError
from hybridize.kernels import api, registry

DECLARED = {name: value for name, value in vars(api).items() if hasattr(value, "__wrapped__")}
IMPLEMENTATIONS = [
    (backend, name, module)
    for backend, modules in registry.KERNELS.items()
    for name, module in modules.items()
]


@pytest.fixture(autouse=True)
def _fresh_cache():
    registry.implementation.cache_clear()
    yield
    registry.implementation.cache_clear()


@pytest.mark.parametrize(("backend", "name", "module"), IMPLEMENTATIONS)
def test_every_implementation_has_the_declared_signature(backend, name, module):
    """The same names, order, kinds, defaults and annotations."""
    if backend == "triton":
        pytest.importorskip("triton", reason="needs triton, which has no build for this platform")
    function = getattr(importlib.import_module(f"hybridize.kernels.{backend}.{module}"), name)
    assert inspect.signature(function) == inspect.signature(DECLARED[name])


def test_every_operation_is_declared_exported_and_has_a_reference():
    assert set(registry.KERNELS["reference"]) == set(DECLARED)
    assert set(kernels.__all__) == {*DECLARED, "patch", "unpatch"}
    assert all(getattr(kernels, name) is declared for name, declared in DECLARED.items())


def test_a_missing_kernel_falls_back_to_the_next_backend():
    def chosen(name, preferred):
        return registry.implementation(name, on_cuda=True, preferred=preferred).__module__

    assert chosen("squared_relu_mlp", "triton") == "hybridize.kernels.eager.mlp"
    assert chosen("fp8_scale", "triton") == "hybridize.kernels.reference.fp8"
    assert chosen("ssd_scan", "reference") == "hybridize.kernels.reference.ssd_scan"


def test_the_first_tensor_may_be_given_by_keyword():
    x, weight = torch.ones(2, 4), torch.full((4,), 3.0)
    got = kernels.rms_norm(weight=weight, x=x, eps=0.0)
    assert torch.equal(got, torch.full((2, 4), 3.0))
    with pytest.raises(TypeError, match="needs the tensor `x`"):
        kernels.rms_norm(weight=weight, eps=0.0)


def test_an_unknown_backend_is_rejected(monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", "abacus")
    with pytest.raises(InputError, match="HYBRIDIZE_KERNELS=abacus"):
        kernels.squared_relu(torch.ones(2))


def test_a_kernel_is_added_with_one_file_and_one_line(monkeypatch, tmp_path):
    """As CONTRIBUTING describes it: a file in ``kernels/<backend>/`` and a line in ``KERNELS``."""
    (tmp_path / "added_kernel.py").write_text(
        textwrap.dedent("""
            import torch


            def squared_relu(x: torch.Tensor) -> torch.Tensor:
                return x.clamp(min=0) ** 2 + 1
        """)
    )
    package = importlib.import_module("hybridize.kernels.eager")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setitem(registry.KERNELS["eager"], "squared_relu", "added_kernel")
    assert kernels.squared_relu(torch.tensor([-2.0, 3.0])).tolist() == [1.0, 10.0]
