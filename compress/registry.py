"""Registries of named parts, such as pruning axes. A part is imported when it is first used."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, NamedTuple, TypeVar

Part = TypeVar("Part")


class Entry(NamedTuple):
    """One line of a registry.

    Attributes:
        target: ``"module:Class"``. The class is called with the entry's name.
        help: a few words for ``--help``.
    """

    target: str
    help: str


def import_target(target: str) -> Any:
    """Import the module of ``"module:Class"``, and return the class."""
    module, _, class_name = target.partition(":")
    return getattr(import_module(module), class_name)


class Registry(Mapping[str, Part], Generic[Part]):
    """Maps names to objects. Only looking up an object imports its module.

    ``--help`` can therefore describe all objects without importing torch.

    Args:
        entries: by name. Another package may add entries before it runs a command.
    """

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self._parts: dict[str, Part] = {}

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            self._parts[name] = import_target(self.entries[name].target)(name)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def help(self) -> str:
        """Return all names with their help texts."""
        return "; ".join(f"{name}: {entry.help}" for name, entry in self.entries.items())
