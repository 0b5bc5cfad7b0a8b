"""A network's settings as text, and back."""

from __future__ import annotations

import json

from funcnet import activations, losses
from funcnet.activations import Activation
from funcnet.arguments import check_network
from funcnet.network import Network

__all__ = ["described", "from_described"]


def described(network: Network) -> dict[str, str]:
    """A network's settings as text.

    Raises:
      ValueError: the caller's own function has the name of a shipped one.

    >>> described(Network(output=activations.tanh))
    {'hidden': 'relu', 'output': 'tanh', 'loss': 'softmax_cross_entropy'}
    """
    f = network.hidden
    hidden = _named(f) if isinstance(f, Activation) else json.dumps([*map(_named, f)])
    names = {"hidden": hidden, "output": _named(network.output), "loss": _named(network.loss)}
    return names | ({} if network.compute_dtype is None else {"compute_dtype": str(network.compute_dtype)})


def _named(f) -> str:
    """The name of an activation or loss, checked to mean only this one."""
    try:
        (activations if isinstance(f, Activation) else losses).from_name(f.name)
    except ValueError:
        return f.name  # the caller's own function
    if not (activations.is_shipped(f) if isinstance(f, Activation) else f in losses.SHIPPED):
        raise ValueError(f"{f.name} is your own function with the name of a shipped one: give it another name")
    return f.name


def from_described(metadata: dict[str, str], network: Network | None) -> Network:
    """The network that a file describes, or the caller's, if its names are the same.

    Raises:
      ValueError: the names differ; or there is no `network`, and the file has no names or unknown ones.

    >>> from_described(described(Network(output=activations.tanh)), None)
    Network(output=tanh)
    """
    names = ("hidden", "output", "loss")
    kept = {name: metadata[name] for name in (*names, "compute_dtype") if name in metadata}
    whole = {*names} <= kept.keys()
    if network is not None:
        check_network(network)
        given = {"compute_dtype": "None"} | described(network)
        for name, value in (({"compute_dtype": "None"} if whole else {}) | kept).items():
            if given[name] != value:
                raise ValueError(
                    f"the file has the {name} {value}, but the given network has {given[name]}; to use another, "
                    "load the file without a network and replace it"
                )
        return network
    if not whole:
        raise ValueError("the file does not name its activations and loss: pass them by load(path, Network(...))")
    try:
        names = json.loads(kept["hidden"]) if kept["hidden"].startswith("[") else kept["hidden"]
        many = isinstance(names, list)
        hidden = tuple(map(activations.from_name, names)) if many else activations.from_name(names)
        output, loss = activations.from_name(kept["output"]), losses.from_name(kept["loss"])
    except ValueError as error:
        raise ValueError(f"{error}; pass your own function by load(path, Network(...))") from error
    return Network(hidden, output, loss, kept.get("compute_dtype"))
