"""How much memory is available: the smallest of several limits."""

import resource
import sys
from pathlib import Path

import pytest

from hybridize.checkpoints import memory


def test_it_is_positive_and_at_most_what_the_machine_has():
    found = memory.available_memory()
    assert found is not None
    pages = memory.os.sysconf("SC_PAGE_SIZE") * memory.os.sysconf("SC_PHYS_PAGES")
    assert 0 < found <= pages


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_meminfo_is_read(monkeypatch):
    monkeypatch.setattr(memory, "_containers", list)
    monkeypatch.setattr(memory, "_fields", lambda path: {"MemAvailable:": 7})
    assert memory.available_memory() == 7 * 1024


def test_unknown(monkeypatch):
    monkeypatch.setattr(memory, "_containers", list)
    monkeypatch.setattr(memory, "_machine", lambda: None)
    monkeypatch.setattr(memory, "_address_space", lambda: None)
    assert memory.available_memory() is None


def test_the_limits_of_containers_count(tmp_path, monkeypatch):
    """A container has its own limit, and lies in others, which may have none."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, limit, used in ((tmp_path / "outer", "9000", "2000"), (inner, "max", "1000")):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(used + "\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    read = Path.read_text

    def fake(path, *arguments):
        own = "0::/outer/inner\n"
        return own if str(path) == "/proc/self/cgroup" else read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", fake)
    assert memory._containers() == [9000 - 2000 + 500]
    assert memory.available_memory() == 7500


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_limit_of_the_address_space_counts(monkeypatch):
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (infinite, infinite))
    assert memory._address_space() is None
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 45, infinite))
    found = memory._address_space()
    assert found is not None
    assert 0 < found < 1 << 45
