"""Parts that live outside the package: a Python file the user names is imported, and only then."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from libmoe.core.errors import ConfigError


def load_plugin(path: str | Path) -> ModuleType:
    """Import a Python file so that what it registers can be used by name; loading it twice does nothing.

    Raises:
        ConfigError: there is no such file, or it fails on import (the message says where and why).
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError(f"plugin {str(path)!r} is not a Python file; pass the path of a .py file")
    name = f"libmoe_plugin_{file.stem}_{abs(hash(str(file)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        line = getattr(error, "lineno", None) or _last_line(error, file)
        where = f"{file.name}:{line}" if line else file.name
        raise ConfigError(f"plugin {where} failed: {type(error).__name__}: {error}") from error
    return module


def _last_line(error: BaseException, file: Path) -> int | None:
    """Line of ``file`` nearest to where the error was raised."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
