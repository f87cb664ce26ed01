"""Registries: named things with metadata; registering is enrolling in the contract tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Generic, TypeVar

from libmoe.core.errors import ConfigError, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Info:
    """What a registry knows of an entry besides the entry itself.

    Attributes:
        name: public name; ``aliases`` are accepted too.
        summary: one line for listings.
        paper: number in the catalogue of papers, if the entry realises one.
        facts: declarations that tests check (``causal``, ``batch_independent``, ``exact_upcycling``, ...).
    """

    name: str
    summary: str = ""
    paper: int | None = None
    aliases: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class Registry(Generic[T]):
    """A dictionary by name that refuses duplicates and answers unknown names with the nearest one."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, tuple[T, Info]] = {}
        self._aliases: dict[str, str] = {}

    def register(self, info: Info) -> Callable[[T], T]:
        """Decorator that enters the object under ``info.name``.

        Raises:
            ConfigError: the name or an alias is taken by a different object.
        """

        def enter(entry: T) -> T:
            for name in (info.name, *info.aliases):
                if name in self._entries or name in self._aliases:
                    raise ConfigError(f"{self.what} {name!r} is registered already; choose another name")
            self._entries[info.name] = (entry, info)
            self._aliases |= dict.fromkeys(info.aliases, info.name)
            return entry

        return enter

    def get(self, name: str) -> T:
        """The entry called ``name``.  Raises ConfigError naming the nearest name when there is none."""
        return self._find(name)[0]

    def info(self, name: str) -> Info:
        return self._find(name)[1]

    def _find(self, name: str) -> tuple[T, Info]:
        name = self._aliases.get(name, name)
        if name not in self._entries:
            raise unknown(self.what, name, [*self._entries, *self._aliases])
        return self._entries[name]

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell pattern such as ``deepseek-*``."""
        return sorted(n for n in self._entries if fnmatch(n, pattern))

    def __contains__(self, name: str) -> bool:
        return name in self._entries or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)
