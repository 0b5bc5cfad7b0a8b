"""Checks of a network's gradient: against `jax.grad(objective)` and the ladder, at kinks, and under repetition."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import mlp
from funcnet.activations import Activation
from funcnet.arguments import check_input, check_network, check_params, targets_and_shares
from funcnet.mlp import backward, objective
from funcnet.network import Network, Params
from funcnet.testing.derivatives import in_words
from funcnet.testing.kinks import JUDGED_AT_KINKS, judge_at_kinks, near_kinks, rows_of, slope_floors
from funcnet.testing.ladder import FLOAT64_TOLERANCE, ROUNDING_FLOOR, judge
from funcnet.testing.report import Report, Row, error_in_eps, name_of, structure_rows, verdict
from funcnet.testing.trees import as_arrays, cast_to, enable_x64, eps_of, quick_jit, whatever_the_numbers


@whatever_the_numbers
def check_backward(
    params: Params,
    x: Any,
    y: Any,
    network: Network = Network(),
    *,
    backward: Callable[..., Params] = backward,
    masks: Any = None,
    sample_weight: Any = None,
    seed: int = 0,
) -> Report:
    """Check `backward` against `jax.grad(objective)` and the rest of the ladder, at one point.

    It also checks that a second run gives the same bits, that the batch gives the mean of its samples and, for other
    functions than funcnet's own, that the result is the same without jit.

    Args:
      params: the network; also in float64, if that is enabled.
      x: `(..., n_0)`; dense inputs show more mistakes than MNIST's zeros.
      y: class ids or targets.
      network: as in `backward`.
      backward: the function to check instead of funcnet's own, with its signature; a default network is not passed.
      masks: as in `backward`.
      sample_weight: as in `backward`.
      seed: of the random directions.

    Returns:
      The report, with a row per leaf.

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (4, 5, 3))
    >>> x, y = jax.random.normal(jax.random.key(1), (7, 4)), jnp.array([0, 1, 2, 0, 1, 2, 0])
    >>> check_backward(params, x, y, Network(funcnet.tanh)).ok
    True
    """
    check_network(network)
    args = _as_rows(params, x, y, network, masks, sample_weight)
    fn, reference = _of_network(network)
    by_hand = _hand_written(backward, network)
    settings = {"tolerance": _tolerance(len(params)), "seed": seed, "compute_dtype": network.compute_dtype}

    if rows := structure_rows(by_hand(*args), params):
        return Report(name_of(backward), rows)
    near = near_kinks(args, network)
    at_kink = np.asarray(np.concatenate(near, 1).any(1))
    floors = slope_floors(args, network)
    # The kinks of activations are known, and are judged below; those of a loss are not known.
    rows, notes = judge(fn, reference, by_hand, args, floors=floors, kinks=not at_kink.any(), **settings)
    if at_kink.any():
        count = f"{at_kink.sum()} of {len(at_kink)} samples are within rounding of a kink"
        if all(row.ok for row in rows):
            notes += (f"{count}; there it takes the same side as jax.grad",)
        else:
            judged = "they" if at_kink.sum() <= JUDGED_AT_KINKS else f"the first {JUDGED_AT_KINKS} of them"
            rows, notes = (), (f"{count}; {judged} are judged one by one, between the gradients on either side",)
            if not at_kink.all():
                clear = rows_of(args, ~at_kink)
                rows, more = judge(fn, reference, by_hand, clear, floors=slope_floors(clear, network), **settings)
                notes += more
            rows += judge_at_kinks(reference, by_hand, args, near, network)
    if not at_kink.all():
        clear, own = rows_of(args, ~at_kink), backward is mlp.backward
        behaviour, more = _judge_behaviour(by_hand, clear, network.compute_dtype, own=own)
        rows, notes = (*rows, *behaviour), (*notes, *more)
    if not all(row.ok for row in rows):
        notes += _suspects(by_hand, args, network)
    return Report(name_of(backward), rows, notes)


def assert_backward(params: Params, x: Any, y: Any, network: Network = Network(), **settings: Any) -> None:
    """Raise an error if `check_backward` is not ok. Args as there.

    Raises:
      AssertionError: its message is the report, and the path of a script of five lines (`reproduce.py`) that runs the
        check again with the same arguments, which are beside it (`case.npz`).

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (4, 5, 3))
    >>> x, y = jax.random.normal(jax.random.key(1), (7, 4)), jnp.array([0, 1, 2, 0, 1, 2, 0])
    >>> assert_backward(params, x, y, Network(funcnet.tanh))
    """
    __tracebackhide__ = True  # pytest then points at the caller
    report = check_backward(params, x, y, network, **settings)
    if not report.ok:
        raise AssertionError(f"{report}\nto reproduce: python {save_case(params, x, y, network, **settings)}")


def save_case(
    params: Params,
    x: Any,
    y: Any,
    network: Network = Network(),
    *,
    masks: Any = None,
    sample_weight: Any = None,
    **settings: Any,
) -> Path:
    """Write a call of `check_backward` to a new folder: the arrays as `case.npz`, and `reproduce.py`, five lines.

    Args:
      params: as in `check_backward`.
      x: as in `check_backward`.
      y: as in `check_backward`.
      network: as in `check_backward`; fill in your own activation or loss in the script.
      masks: as in `check_backward`.
      sample_weight: as in `check_backward`.
      **settings: its other arguments; fill in a function in the script.

    Returns:
      The script.
    """
    folder = Path(tempfile.mkdtemp(prefix="funcnet-"))
    arrays = {f"params_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(params))} | {"x": x, "y": y}
    arrays |= {f"mask_{l}": mask for l, mask in enumerate(masks or ()) if mask is not None}
    arrays |= {} if sample_weight is None else {"sample_weight": sample_weight}
    # npz has no bfloat16: it is stored exactly, as float32, and converted back.
    arrays = {name: np.asarray(a) for name, a in arrays.items()}
    bfloat16 = [name for name, a in arrays.items() if a.dtype == jnp.bfloat16]
    arrays |= {name: arrays[name].astype(np.float32) for name in bfloat16}
    np.savez(folder / "case.npz", allow_pickle=False, **arrays)

    x64 = any(a.dtype == np.float64 for a in arrays.values())
    keywords = f", {network}" if network != Network() else ""
    keywords += "".join(f", {name}={'...' if callable(value) else repr(value)}" for name, value in settings.items())
    keywords += "" if sample_weight is None else ', sample_weight=case["sample_weight"]'
    if masks is not None:
        keywords += f', masks=[case.get(f"mask_{{l}}") for l in range({len(params)})]'
    (folder / "reproduce.py").write_text(
        "import jax, jax.numpy as jnp, numpy as np; from funcnet import *; from funcnet import testing; "
        f"jax.config.update('jax_enable_x64', {x64})\n"
        f"case = dict(np.load({str(folder / 'case.npz')!r}))\n"
        f"case |= {{name: jnp.asarray(case[name], jnp.bfloat16) for name in {bfloat16}}}\n"
        f'params = [(case[f"params_{{2 * l}}"], case[f"params_{{2 * l + 1}}"]) for l in range({len(params)})]\n'
        f'print(testing.check_backward(params, case["x"], case["y"]{keywords}))\n'
    )
    return folder / "reproduce.py"


def _judge_behaviour(by_hand, args, compute_dtype, *, own) -> tuple[list[Row], tuple[str, ...]]:
    """The same bits again; in float64 the batch as the mean of its samples; and, unless `own`, the same without jit.

    Without jit each operation is a separate program, which takes seconds to compile; funcnet's tests do that for `own`.
    """
    with jax.default_matmul_precision("highest"):  # the program that was judged
        first, again = as_arrays(by_hand(*args)), as_arrays(by_hand(*args))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    rows = [verdict("run again", (), same, "bit for bit", "other bits")]
    if compute_dtype is not None:
        return rows, ()
    with enable_x64(True):
        params, x, y, masks, w = cast_to(args, np.float64)
        batch = by_hand(params, x, y, masks, w)
        if not own:
            with jax.disable_jit():
                rows.append(_worst_row("without jit", by_hand(params, x, y, masks, w), batch))
        try:
            samples, loop = _one_by_one(by_hand, params, x, y, masks)
        except Exception as error:  # any error of a user's function that takes batches alone
            return rows, (f"the samples one by one: not tried, {in_words(error)}",)
        share = np.full(len(x), 1 / len(x)) if w is None else np.asarray(w) / np.sum(w)
        mean = [np.tensordot(share, g, 1) for g in samples]
        rows.append(_worst_row("mean of samples", mean, batch))
        rows.append(_worst_row("vmap and loop", [g[:4] for g in samples], loop))
    return rows, ()


def _one_by_one(by_hand, params, x, y, masks) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gradient of each sample by `vmap`, and those of the first four without it."""

    def alone(i):
        sample = jax.tree.map(lambda a: jax.device_put(np.asarray(a)[i]), (x, y, masks))
        return as_arrays(by_hand(params, *sample, None))

    loop = [np.stack(leaves) for leaves in zip(*map(alone, range(min(len(x), 4))), strict=True)]
    return as_arrays(_of_samples(by_hand, params, x, y, masks)), loop


@partial(quick_jit, static_argnums=0)
def _of_samples(by_hand, params, x, y, masks):
    return jax.vmap(by_hand, (None, 0, 0, 0, None))(params, x, y, masks, None)


def _worst_row(name, got, want) -> Row:
    """A row for two gradients in float64, leaf by leaf; differences below the rounding of the largest leaf are 0."""
    got, want, eps = as_arrays(got), as_arrays(want), eps_of(np.float64)
    floor = ROUNDING_FLOOR * eps * max(np.abs(leaf).max(initial=0.0) for leaf in want)
    pairs = [pair for pair in zip(got, want, strict=True) if not np.abs(pair[0] - pair[1]).max(initial=0.0) <= floor]
    error = max((error_in_eps(g, w, eps) for g, w in pairs), default=0.0)
    ok = error <= FLOAT64_TOLERANCE / eps
    return Row(name, (), error, ok, f"in float64, to {FLOAT64_TOLERANCE:g}", "" if ok else "they differ")


def _suspects(by_hand, args, network) -> tuple[str, ...]:
    """The known mistakes, made on purpose, that give the same wrong gradient."""
    params, x, y, masks, w = args
    hidden = network.hidden
    flat = tuple(map(_without_slope, hidden)) if isinstance(hidden, tuple) else _without_slope(hidden)
    mistakes = {
        "the derivative of the hidden activation is missing": {"network": replace(network, hidden=flat)},
        "the derivative of the output activation is missing": {
            "network": replace(network, output=_without_slope(network.output))
        },
        "the masks are forgotten": {"masks": None},
        "the sample weights are forgotten": {"sample_weight": None},
    }
    if jnp.issubdtype(jnp.asarray(y).dtype, jnp.integer):
        K = params[-1][0].shape[1]
        mistakes |= {
            f"the class ids are {by:+d} off": {"y": jax.device_put((np.asarray(y) + by) % K)} for by in (1, -1)
        }
    call = {"y": y, "network": network, "masks": masks, "sample_weight": w}
    got, right = as_arrays(by_hand(*args)), as_arrays(backward(params, x, **call))
    notes = []
    for name, changed in mistakes.items():
        made = as_arrays(backward(params, x, **(call | changed)))
        if all(error_in_eps(m, r, 1e-5) <= 1 for m, r in zip(made, right, strict=True)):
            continue  # not a mistake here
        if all(g.shape == m.shape and error_in_eps(g, m, 1e-5) <= 1 for g, m in zip(got, made, strict=True)):
            notes.append(f"exactly the gradient that results if {name}")
    return tuple(notes)


@functools.lru_cache(64)
def _without_slope(f):
    return Activation(f.name, f.fn, lambda z, a: jnp.ones_like(z))


def _as_rows(params, x, y, network, masks, sample_weight):
    """The arguments with one leading axis, that of the samples."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    check_params(params)
    check_input(params, x)
    n = x.shape[:-1]
    targets_and_shares(y, jnp.zeros((*n, params[-1][0].shape[1])), network, sample_weight)

    def rows(a, shape=()):
        return None if a is None else jax.device_put(np.asarray(a).reshape(-1, *shape))

    masks = masks if masks is None else tuple(m if m is None else rows(m, m.shape[-1:]) for m in masks)
    return params, rows(x, x.shape[-1:]), rows(y, y.shape[len(n) :]), masks, rows(sample_weight)


def _objective(network, params, x, y, masks, sample_weight):
    return objective(params, x, y, network, masks=masks, sample_weight=sample_weight)


_jax_gradient = jax.jit(jax.grad(_objective, argnums=1))


@functools.lru_cache(64)
def _of_network(network):
    """The objective and its gradient by JAX: the same two functions for the same network, so compiled once."""
    return partial(_objective, network), partial(_jax_gradient, network)


@functools.lru_cache(64)
def _hand_written(backward, network):
    """`by_hand(params, x, y, masks, sample_weight)`, the same function object for the same network."""

    def by_hand(params, x, y, masks, sample_weight):
        arrays = {"masks": masks, "sample_weight": sample_weight}
        given = {name: value for name, value in arrays.items() if value is not None}
        return backward(params, x, y, *(() if network == Network() else (network,)), **given)

    return by_hand


def _tolerance(L: int) -> float:
    return 16.0 if L <= 4 else 64.0 if L <= 32 else 2.0 * L
