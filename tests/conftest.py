"""Settings of all tests: one thread, no network, fixed seeds, and the real checkpoints, if any."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# Set before torch is imported. The tests run in several processes, and with several threads the
# rounding of sums would depend on the machine.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
# Triton kernels are tested without a GPU. benchmarks/kernels_gpu.sh sets 0 to test them on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest

from hybridize.progress import ProgressLog

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "materials" in getattr(item, "fixturenames", ()):
            item.add_marker("materials")


@pytest.fixture(scope="session", autouse=True)
def _no_progress_lines() -> Iterator[None]:
    """Print no progress lines, because their number depends on the speed of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressLog, "FIRST_LINE", 1e6)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    # Tests that need neither numpy nor torch should not wait for their import.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def materials() -> Path:
    """The folder with real checkpoints and data beside the repository; skips if it is missing."""
    folder = ROOT.parent / "shared" / "materials"
    if not folder.is_dir():
        pytest.skip("needs the real checkpoints in ../shared/materials")
    return folder


@pytest.fixture(autouse=True)
def _without_check(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert without the check, unless a test gives the option or wants it: it takes 0.3 s."""
    if "check_by_default" not in request.fixturenames:
        monkeypatch.setattr("hybridize.conversion.output_check.BY_DEFAULT", False)


@pytest.fixture
def check_by_default() -> None:
    """Let conversions be checked by default, as they are outside of the tests."""
