"""One program over many devices: the shardings of the parameters, the optimizer's state and the batches on a mesh.

    mesh = make_mesh("data=4,model=2")
    state = put(state, state_shardings(state, mesh))
    x, y = shard_batches(key, images, labels, batch_size=128, mesh=mesh)  # an epoch's batches, (S, B, ...)
    state, metrics = jax.jit(make_prebatched_epoch(step, samples=len(images)))(state, key, x, y)

`data` splits samples: every device runs the same step on its part of each batch. Since `dW_l = a_{l-1}^T delta_l` is a
sum over samples, XLA adds one all-reduce per step. `model` splits units: the columns of one `W_l` and the rows of the
next, so that a device has a part of the units between them (Shoeybi et al., Megatron-LM, 2019, section 3). The code of
the network does not depend on it.
"""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from funcnet.network import Params
from funcnet.training import TrainState, plan_batches

__all__ = ["AXES", "make_mesh", "param_shardings", "put", "replicated", "shard_batches", "state_shardings"]

AXES = ("data", "model")


def make_mesh(text: str, *, axis_type: AxisType = AxisType.Auto) -> Mesh:
    """A mesh from its description, over the first devices of all processes.

    Args:
      text: `"data=4,model=2"`, `"data=8"`, `"model=8"`; an axis without an entry has size 1.
      axis_type: `Auto`, or `Explicit` (JAX keeps the shardings in the types) for a mesh without `model`.

    Returns:
      The mesh, with the axes `data` and `model`.

    Raises:
      ValueError: the description is not of this form, or asks for more devices than there are.

    >>> make_mesh("data=1").shape
    OrderedDict([('data', 1), ('model', 1)])
    """
    sizes = dict.fromkeys(AXES, 1)
    parts = [part.partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in parts]
    if not set(names) <= set(AXES) or len(set(names)) < len(names) or not all(s.strip().isdecimal() for *_, s in parts):
        raise ValueError(f'the mesh is {text!r}, expected a description such as "data=4,model=2"')
    sizes |= {name: int(size) for name, (*_, size) in zip(names, parts, strict=True)}
    wanted = math.prod(sizes.values())
    if not 0 < wanted <= jax.device_count():
        raise ValueError(
            f"the mesh {text!r} is of {wanted} devices, expected 1 to {jax.device_count()}, the number available"
        )
    devices = np.array(jax.devices()[:wanted]).reshape(tuple(sizes.values()))
    return Mesh(devices, AXES, axis_types=(axis_type,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a whole copy on every device.

    >>> tuple(replicated(make_mesh("data=1")).spec)
    ()
    """
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(params: Params, mesh: Mesh) -> Params:
    """The shardings of the parameters: columns of `W_1`, rows of `W_2`, columns of `W_3`, ... over the axis `model`.

    A layer is replicated on every device if the axis does not divide its width, or has size 1.

    Args:
      params: `[(W, b), ...]`, or their shapes.
      mesh: from `make_mesh`.

    Returns:
      The same tree, of shardings.

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (784, 512, 10))
    >>> (W_1, b_1), (W_2, b_2) = param_shardings(params, jax.sharding.AbstractMesh((4, 2), AXES))
    >>> [tuple(leaf.spec) for leaf in (W_1, b_1, W_2, b_2)]
    [(None, 'model'), ('model',), ('model', None), ()]
    """
    model = mesh.shape["model"]
    layers = []
    split = False  # whether the inputs of the layer are split
    for W, _ in params:
        n_out = W.shape[1]
        if split:
            layer, split = (("model", None), ()), False
        elif model > 1 and n_out % model == 0 and len(layers) < len(params) - 1:
            layer, split = ((None, "model"), ("model",)), True
        else:
            layer = ((), ())
        layers.append(tuple(NamedSharding(mesh, PartitionSpec(*spec)) for spec in layer))
    return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(layers))


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """The shardings of a training state: trees like the parameters as these, everything else on every device.

    Args:
      state: from `init_state`, with any optimizer, also of optax.
      mesh: from `make_mesh`.

    Returns:
      The same tree, of shardings: for `put`, and for `out_shardings` of `jit`.

    >>> import funcnet
    >>> from funcnet.training import init_state
    >>> state = init_state(funcnet.init(jax.random.key(0), (784, 512, 10)), funcnet.adam(1e-3))
    >>> shardings = state_shardings(state, jax.sharding.AbstractMesh((4, 2), AXES))
    >>> tuple(shardings.opt_state.mean[0][0].spec)
    (None, 'model')
    """
    shardings = param_shardings(state.params, mesh)
    shapes = jax.tree.map(np.shape, state.params)

    def is_like_params(part):
        return jax.tree.structure(part) == jax.tree.structure(state.params)

    def lay(part):
        if is_like_params(part) and jax.tree.map(np.shape, part) == shapes:
            return shardings
        return jax.tree.map(lambda _: replicated(mesh), part)

    return jax.tree.map(lay, state, is_leaf=is_like_params)


def put(tree: Any, shardings: Any) -> Any:
    """Put values that every process has on the devices: each gets its own part, and nothing moves between processes.

    Args:
      tree: arrays.
      shardings: the same tree, of shardings, or one for all.

    >>> put(np.arange(4), replicated(make_mesh("data=1"))).sharding.is_fully_replicated
    True
    """
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: _put_array(leaf, shardings), tree)
    return jax.tree.map(_put_array, tree, shardings)


def shard_batches(key: Array, x: Any, y: Any, *, batch_size: int, mesh: Mesh) -> tuple[Array, Array]:
    """An epoch's batches, in the same order as in `make_epoch`, each split over the axis `data`.

    Every process draws the same order, so the run is the same on every mesh. From `x` and `y` it reads only the samples
    of its own devices; they may be memory-mapped files.

    Args:
      key: that of the epoch.
      x: `(N, ...)`, on the host.
      y: `(N,)` or `(N, K)`, on the host.
      batch_size: `B`, a multiple of the size of `data`.
      mesh: from `make_mesh`.

    Returns:
      `x` `(S, B, ...)` and `y` `(S, B)` or `(S, B, K)`, for `make_prebatched_epoch`.

    Raises:
      ValueError: the batch cannot be split evenly, or `x` and `y` differ in length or are empty.

    >>> y = np.arange(10)
    >>> x = y[:, None].astype(np.uint8)
    >>> x, y = shard_batches(jax.random.key(0), x, y, batch_size=4, mesh=make_mesh("data=1"))
    >>> x.shape, y.shape, np.array_equal(x[..., 0], y)
    ((3, 4, 1), (3, 4), True)
    """
    if batch_size < 1 or batch_size % mesh.shape["data"]:
        raise ValueError(
            f"the batch size is {batch_size}, expected a positive multiple of {mesh.shape['data']}, the "
            "size of the mesh's axis data"
        )
    if not len(x) == len(y) > 0:
        raise ValueError(f"there are {len(x)} samples in x and {len(y)} in y, expected the same number, at least one")
    indices = np.asarray(_plan(key, len(x), batch_size))  # (S, B)
    columns = NamedSharding(mesh, PartitionSpec(None, "data"))

    def sharded(a):
        shape = indices.shape + a.shape[1:]
        return jax.make_array_from_callback(shape, columns, lambda part: a[indices[tuple(part or ())[:2]]])

    return sharded(x), sharded(y)


@partial(jax.jit, static_argnums=(1, 2))
def _plan(key, n, batch_size):
    return plan_batches(key, n, batch_size).indices


def _put_array(array, sharding):
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
