"""A pair of models and an uninterrupted run, which several modules compare with."""

import pytest
from distilling import short_run, write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Read-only: all tests of the module share it."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    """The output directory and the result of an uninterrupted run."""
    output = tmp_path_factory.mktemp("done") / "out"
    return output, short_run(pair, output)
