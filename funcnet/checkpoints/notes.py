"""The content of a checkpoint except its arrays: JSON text with its hash."""

import hashlib
import json
from typing import Any

from funcnet.checkpoints.damage import quiet_stderr
from funcnet.extras import import_extra


def check_notes(value: Any, where: str = "notes") -> None:
    """Refuse values that JSON accepts, but returns as something else."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}, expected text: JSON would convert it")
            check_notes(inner, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            check_notes(inner, f"{where}[{place}]")
    elif isinstance(value, tuple):
        raise ValueError(f"{where} is the tuple {value!r:.80}, which JSON would convert to a list: expected a list")


def sealed(content: str) -> dict[str, str]:
    """A text with its hash."""
    return {"content": content, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def unsealed(manager, number) -> dict[str, Any]:
    """The content except the arrays, checked to be unchanged."""
    ocp = import_extra("orbax.checkpoint")
    with quiet_stderr():
        found = manager.restore(number, args=ocp.args.Composite(sealed=ocp.args.JsonRestore())).sealed
    if found != sealed(found["content"]):
        raise ValueError("its notes have changed since they were written")
    return json.loads(found["content"])
