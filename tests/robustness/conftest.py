from pathlib import Path

import pytest
from specimens import write_specimens


@pytest.fixture(scope="session")
def specimens(tmp_path_factory) -> Path:
    """A directory of undamaged inputs; see `write_specimens`."""
    directory: Path = tmp_path_factory.mktemp("specimens")
    write_specimens(directory)
    return directory
