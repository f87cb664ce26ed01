"""Parts that live outside the package: a Python file the user names is imported, and only then."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from libmoe.core.errors import ConfigError, LibMoEError

_PREFIX = "libmoe_plugin_"


def load_plugin(path: str | Path) -> ModuleType:
    """Import a Python file so that what it registers can be used by name; loading it twice does nothing.

    Raises:
        ConfigError: there is no such file, or it fails on import (the message says where and why).
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError(f"plugin {str(path)!r} is not a Python file; pass the path of a .py file")
    name = f"{_PREFIX}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        place = f"{file.name}:{error.lineno}" if isinstance(error, SyntaxError) else _last_place(error, file)
        raise ConfigError(f"plugin {place or file.name} failed: {describe(error)}") from error
    return module


def plugin_file(thing: type) -> Path | None:
    """The plugin that defines a class; ``None`` for classes that come from elsewhere."""
    module = sys.modules.get(thing.__module__)
    if module is None or not thing.__module__.startswith(_PREFIX):
        return None
    return Path(str(module.__file__))


def loaded_plugins() -> list[Path]:
    """The files of all plugins that this process has loaded, in the order of loading."""
    return [Path(str(m.__file__)) for name, m in list(sys.modules.items()) if name.startswith(_PREFIX)]


def blame(error: BaseException) -> str | None:
    """``file.py:line`` of the loaded plugin whose code raised ``error``, ``None`` when no plugin took part."""
    places = (_last_place(error, file) for file in loaded_plugins())
    return next((place for place in places if place), None)


def describe(error: BaseException) -> str:
    """An exception as one line: a user's error by its text, any other with its type before it."""
    text = " ".join(str(error).split())
    if isinstance(error, LibMoEError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _last_place(error: BaseException, file: Path) -> str | None:
    """``file.py:line`` of the last line of ``file`` that the error passed through."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            found = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
