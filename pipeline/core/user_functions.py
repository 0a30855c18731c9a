"""Loads functions that the configuration gives as ``file.py:function`` or ``module:function``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.cache import hash_file
from pipeline.core.errors import ConfigError


def load_function(place: str, field: str) -> Callable[..., Any]:
    """Import the function at ``place``. ``field`` is the setting that gave it.

    Raises:
        ConfigError: there is no such file, module or function, or the import fails.
    """
    where, _, name = place.rpartition(":")
    module = _module(where, field)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{field}: {where} has no function {name!r}; give one that it defines.")
    return function


def function_identity(place: str, field: str = "align.functions") -> str:
    """Hash of the file that defines the function, and the function's name. Raises what ``load_function`` raises."""
    file = inspect.getsourcefile(_module(place.rpartition(":")[0], field))
    if file is None:
        raise ConfigError(f"{field}: {place} has no source file; give a function of a Python file.")
    return f"{hash_file(Path(file))}:{place.rpartition(':')[2]}"


def _module(where: str, field: str) -> ModuleType:
    path = Path(where).expanduser()
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise ConfigError(f"{field}: there is no file {where}; give a Python file.")
    try:
        if not is_file:
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except SyntaxError as error:
        file = error.filename or where  # or a file that the user's file imports
        raise ConfigError(f"{field}: {file} is not valid Python (line {error.lineno}: {error.msg}).") from None
    except (Exception, SystemExit) as error:  # the user's own code runs here; sys.exit would end the run as a success
        raise ConfigError(f"{field}: {where} can't be imported ({type(error).__name__}: {error}).") from None
