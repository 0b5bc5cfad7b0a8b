"""Optional libraries: imported where they are used; if one is missing, the error says how to install it."""

import importlib
from types import ModuleType

__all__ = ["import_extra"]


def import_extra(module: str, extra: str = "train") -> ModuleType:
    """Import a module of an optional dependency.

    Raises:
      ImportError: it is not installed; the message is the command that installs it.

    >>> import_extra("no_such_library.part")
    Traceback (most recent call last):
    ImportError: no_such_library is not installed: pip install 'funcnet[train]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # the module is there, but a module that it needs is not
        raise ImportError(f"{module.split('.')[0]} is not installed: pip install 'funcnet[{extra}]'") from error
