"""A network as text: its settings by name, and back."""

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
      ValueError: a function of the caller's own has the name of a shipped one.

    >>> described(Network(output=activations.tanh))
    {'hidden': 'relu', 'output': 'tanh', 'loss': 'softmax_cross_entropy'}
    """
    f = network.hidden
    hidden = _named(f) if isinstance(f, Activation) else json.dumps([*map(_named, f)])
    names = {"hidden": hidden, "output": _named(network.output), "loss": _named(network.loss)}
    return names | ({} if network.compute_dtype is None else {"compute_dtype": str(network.compute_dtype)})


def _named(f) -> str:
    """The name of an activation or loss, by which it is found again."""
    try:
        (activations if isinstance(f, Activation) else losses).from_name(f.name)
    except ValueError:
        return f.name  # of the caller's own
    if not (activations.is_shipped(f) if isinstance(f, Activation) else f in losses.SHIPPED):
        raise ValueError(f"{f.name} is a function of your own with the name of a shipped one: give it another name")
    return f.name


def from_described(metadata: dict[str, str], network: Network | None) -> Network:
    """The network that a file describes, or the caller's, if it is of the same names.

    Raises:
      ValueError: it is not; or there is none, and the file does not say it by names that are known here.

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
                    f"the file has the {name} {value}, but the network is given with {given[name]}; to use another, "
                    "load the file without one and replace it"
                )
        return network
    if not whole:
        raise ValueError(
            "the file does not name its activations and loss: load(path, Network(...)) says which they are"
        )
    try:
        names = json.loads(kept["hidden"]) if kept["hidden"].startswith("[") else kept["hidden"]
        many = isinstance(names, list)
        hidden = tuple(map(activations.from_name, names)) if many else activations.from_name(names)
        output, loss = activations.from_name(kept["output"]), losses.from_name(kept["loss"])
    except ValueError as error:
        raise ValueError(f"{error}; bring one of your own by load(path, Network(...))") from error
    return Network(hidden, output, loss, kept.get("compute_dtype"))
