"""StableHLO: `predict` as a program, for JAX without funcnet and for other runtimes."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
from jax import export

from funcnet.exchange.checks import check_exported
from funcnet.extras import import_extra
from funcnet.files import write_atomically
from funcnet.mlp import predict
from funcnet.network import Network, Params


def to_stablehlo(
    path: str | os.PathLike[str],
    params: Params,
    network: Network = Network(),
) -> None:
    """Write `predict` as a StableHLO program with its weights, for CPU, GPU and TPU and any batch size.

    Run it without funcnet by `export.deserialize(bytearray(path.read_bytes())).call(x)`, after `from jax import
    export`. Other runtimes can read it, too.

    Args and errors as in `to_onnx`, except that it takes any activation and any loss, and needs flatbuffers, not onnx.

    >>> import tempfile, pathlib, funcnet
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "network"
    >>> params = funcnet.init(jax.random.key(0), (4, 3))
    >>> to_stablehlo(path, params)
    >>> p = export.deserialize(bytearray(path.read_bytes())).call(jnp.ones((7, 4)))
    >>> bool(jnp.allclose(p, funcnet.predict(params, jnp.ones((7, 4)))))
    True
    """
    import_extra("flatbuffers", "exchange")  # JAX needs it to write programs, but does not name it
    check_exported(params, network, exact=False)
    (n,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, params[0][0].shape[0]), jnp.promote_types(params[0][0].dtype, jnp.float32))
    predictor = jax.jit(lambda x: predict(params, x, network))
    exported = export.export(predictor, platforms=("cpu", "cuda", "tpu"))(x)
    write_atomically(path, bytes(exported.serialize()))
