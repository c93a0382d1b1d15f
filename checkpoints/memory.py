"""How much memory this process may still use."""

import os
import resource
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping; None if the system does not say.

    The smallest of what the machine has left, what a container may still use (cgroup v2), and what
    ``ulimit -v`` leaves.
    """
    limits = [_machine(), *_containers(), _address_space()]
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


def _machine() -> int | None:
    found = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    if found is not None:
        return found * 1024  # given in KiB
    try:  # other systems say only how much memory they have
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return None


def _containers() -> list[int]:
    """Return what each cgroup around this process leaves, without limits that are not set."""
    try:
        own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].splitlines()
    except OSError:
        return []
    group = _CGROUPS / own[0] if own else _CGROUPS
    left = []
    for folder in (group, *group.parents):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            # Files that were read count as used, but are given up when memory is needed.
            files = _fields(folder / "memory.stat").get("inactive_file", 0)
            left.append(limit - used + files)
        if folder == _CGROUPS:
            break
    return left


def _address_space() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _number(Path("/proc/self/statm"))
    if limit == resource.RLIM_INFINITY or pages is None:
        return None
    return limit - pages * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    """Return the first number in a file; None if there is no file or no number."""
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the lines ``name number`` of a file; nothing if there is no file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
