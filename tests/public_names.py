"""The public names of funcnet with their signatures, one a line.

    python tests/public_names.py > tests/public_names.txt

`test_package.py` holds them to that file, so that a name or an argument is changed on purpose or not at all.
"""

import importlib
import inspect
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "funcnet"


def public_names() -> list[str]:
    """`module.name(arguments)` of all that a module's `__all__` names, without annotations."""
    files = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__main__")
    lines = []
    for path in files:
        parts = ("funcnet", *path.relative_to(PACKAGE).with_suffix("").parts)
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        names = sorted(getattr(module, "__all__", ()))
        lines += [f"{module.__name__}.{name}{arguments_of(getattr(module, name))}" for name in names]
    return lines


def arguments_of(value) -> str:
    """The arguments of a function or a class, nothing for any other value."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # a type, an error, a constant
        return ""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty, default=shown(parameter)) for parameter in parameters
    ]
    return str(inspect.Signature(plain))


class Shown(str):
    """Text whose repr is itself."""

    __repr__ = str.__str__


def shown(parameter):
    """A default as it would be written: a function or a dtype by its name."""
    default = parameter.default
    named = inspect.isfunction(default) or hasattr(default, "__wrapped__") or hasattr(default, "dtype")
    return Shown(default.__name__) if named else default


if __name__ == "__main__":
    sys.stdout.write("\n".join([*public_names(), ""]))
