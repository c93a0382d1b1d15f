"""Named parts, such as pruning axes, that are imported only when they are used."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, NamedTuple, TypeVar

Part = TypeVar("Part")


class Entry(NamedTuple):
    """One line of a registry.

    Attributes:
        target: ``"module:Class"``. The object is made with its name as the only argument.
        help: a few words for ``--help``.
    """

    target: str
    help: str


class Registry(Mapping[str, Part], Generic[Part]):
    """Maps names to objects. Names and help texts are known without importing any object's module.

    ``--help`` can therefore describe all of them without importing torch.

    Args:
        entries: by name. Another package may add entries before it runs a command.
    """

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self._parts: dict[str, Part] = {}

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            module, _, class_name = self.entries[name].target.partition(":")
            self._parts[name] = getattr(import_module(module), class_name)(name)
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
