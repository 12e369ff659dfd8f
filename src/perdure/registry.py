"""Names to things: one small registry class, discovery by package and by entry point.

A method is added by adding one file to ``perdure/methods`` (or, in another distribution, an entry point in the
group ``perdure.methods``); nothing else is edited. A plug-in, which is such an entry point, may fail to load: then it
is left out with a warning, and nothing else is.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from perdure.errors import ConfigError, UnknownNameError, did_you_mean, told

T = TypeVar("T")


class PluginWarning(UserWarning):
    """A plug-in that could not be loaded and is left out."""


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
        kind: what is registered, for error messages ("method").
        package: a package whose modules register things when imported; imported on first use.
        group: an entry-point group whose members register things when loaded.
    """

    def __init__(self, kind: str, package: str | None = None, group: str | None = None) -> None:
        self.kind, self._package, self._group = kind, package, group
        self._things: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        self._plugins: dict[str, str] = {}
        self._broken: dict[str, tuple[str, BaseException]] = {}
        self._left_out: set[str] = set()
        self._discovered = False
        self._lock = threading.RLock()

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """A decorator that files the decorated thing under ``name``.

        Args:
            name: what it is listed under.
            aliases: other names it is found by.

        Raises:
            ConfigError: if a name is taken by something else.
        """

        def file_it(thing: T) -> T:
            if getattr(thing, "__module__", None) in self._left_out:
                return thing
            for each in (name, *aliases):
                if self._things.get(each, thing) is not thing:
                    raise ConfigError(f"{self.kind} registry", "name", "unused", each, "Choose another name")
            self._things |= dict.fromkeys((name, *aliases), thing)
            self._aliases |= dict.fromkeys(aliases, name)
            return thing

        return file_it

    def leave_out(self, module: str) -> None:
        """Files nothing of what a module registers, so that it may use the names of what is installed.

        Args:
            module: its name, before it is run.
        """
        self._left_out.add(module)

    def names(self) -> list[str]:
        """All names without aliases, sorted."""
        self._discover()
        return sorted(set(self._things) - set(self._aliases))

    def aliases(self) -> dict[str, str]:
        """Each alias and the name it stands for."""
        self._discover()
        return dict(self._aliases)

    def plugins(self) -> dict[str, str]:
        """Each distribution whose plug-ins were loaded, and its version."""
        self._discover()
        return dict(self._plugins)

    def broken(self) -> list[str]:
        """Names of the entry points that could not be loaded; :meth:`get` says why."""
        self._discover()
        return sorted(self._broken)

    def __contains__(self, name: object) -> bool:
        """Whether :meth:`get` finds ``name``, be it an alias."""
        self._discover()
        return name in self._things

    def get(self, name: str) -> T:
        """The thing filed under ``name``.

        Raises:
            UnknownNameError: with close matches; for the name of a plug-in that could not be loaded, with its error as
                the cause.
        """
        if name not in self and name in self._broken:
            who, error = self._broken[name]
            hint = f"Mend or uninstall {who}, whose loading failed ({told(error)})"
            raise UnknownNameError("perdure", self.kind, "one whose plug-in can be loaded", name, hint) from error
        if name not in self:
            hint = did_you_mean(name, self.names(), self._aliases)
            raise UnknownNameError("perdure", self.kind, "known", name, hint)
        return self._things[name]

    def _discover(self) -> None:
        with self._lock:  # another thread must not meet half of the names
            if self._discovered:
                return
            self._discovered = True  # first: the modules may ask for names while they are imported
            try:
                self._import_all()
            except BaseException:
                self._discovered = False
                raise

    def _import_all(self) -> None:
        if self._package:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        if self._group:
            for point in entry_points(group=self._group):
                self._load(point)

    def _load(self, point: EntryPoint) -> None:
        """Files all that an entry point registers, or nothing of it."""
        before, who = (dict(self._things), dict(self._aliases)), "an unnamed distribution"
        try:
            if point.dist:
                who = f"{point.dist.name} {point.dist.version}"
            point.load()
        except (Exception, SystemExit) as error:  # whatever somebody else's module does when it is imported
            self._things, self._aliases = before
            self._broken[point.name] = (who, error)
            message = f"{self.kind} plug-in {point.name!r} of {who} failed to load and is left out: {told(error)}"
            warnings.warn(PluginWarning(message), stacklevel=2)
            return
        if point.dist:
            self._plugins[point.dist.name] = point.dist.version
