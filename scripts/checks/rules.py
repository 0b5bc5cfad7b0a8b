"""Test which checkers notice mistakes in derivative rules that people write themselves.

    python scripts/checks/rules.py              # every mistake, three checkers; needs chex
    python scripts/checks/rules.py bfloat16     # those in one dtype

Nine functions with a rule of their own, each correct, and with one mistake at a time.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.test_util import check_grads

from funcnet import testing


class Case(NamedTuple):
    """A function, its reference in plain JAX, where to check it, and its mistakes, by name."""

    make: Callable[..., Callable[..., Any]]  # of hooks that replace a step of the rule
    reference: Callable[..., Any]
    args: tuple[Any, ...]
    mistakes: dict[str, dict[str, Any]]
    stopped: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    accuracy: float | None = None


def with_rule(fn, forward, backward):
    """`fn` with a rule of its own."""
    f = jax.custom_vjp(fn)
    f.defvjp(forward, backward)
    return f


def draw(seed, *shape, scale=1.0):
    """Dense random numbers."""
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


# layer norm: y = x_hat w + b


def normalized(x):
    """`x_hat`, and one over the standard deviation."""
    mean = x.mean(-1, keepdims=True)
    rstd = jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3)
    return (x - mean) * rstd, rstd


def norm(x, w, b):
    """Layer normalization of rows."""
    return normalized(x)[0] * w[None] + b[None]


LAST_CALL: dict[str, Any] = {}


def norm_with_rule(*, scaled=lambda v, w: v * w[None], mean_term=1.0, hat_term=1.0, rstd_of=lambda rstd: rstd,
                   dw=lambda v, x_hat: (v * x_hat).sum(0), db=lambda v: v.sum(0), residuals=lambda kept: kept,
                   ):  # fmt: skip
    """The four terms of its rule."""

    def forward(x, w, b):
        x_hat, rstd = normalized(x)
        kept = LAST_CALL["norm"] = (x_hat, rstd, w)
        return x_hat * w[None] + b[None], kept

    def backward(kept, v):
        x_hat, rstd, w = residuals(kept)
        d = scaled(v, w)
        d = d - mean_term * d.mean(-1, keepdims=True) - hat_term * x_hat * (d * x_hat).mean(-1, keepdims=True)
        return (rstd_of(rstd) * d).astype(v.dtype), dw(v, x_hat), db(v)

    return with_rule(norm, forward, backward)


def in_steps(terms):
    """A sum that is rounded to the dtype of the terms after each step."""
    return jax.lax.scan(lambda total, term: (total + term, None), jnp.zeros_like(terms[0]), terms)[0]


# softmax cross-entropy, the mean over the rows whose label is not -1


def cross_entropy(logits, labels):
    """In plain JAX."""
    kept = (labels >= 0).astype(logits.dtype)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], 1)[:, 0]
    return -(picked * kept).sum() / kept.sum()


def cross_entropy_with_rule(*, kept_of=lambda labels: labels >= 0, count=lambda kept: kept.sum(), weight=lambda v: v,
                            label=lambda y: jnp.maximum(y, 0), one_hot=1.0, sign=1.0):  # fmt: skip
    """Its rule, `(softmax - one_hot) / count`."""

    def backward(saved, v):
        logits, labels = saved
        target = one_hot * jax.nn.one_hot(label(labels), logits.shape[1], dtype=logits.dtype)
        kept = kept_of(labels).astype(logits.dtype)
        delta = (jax.nn.softmax(logits) - target) * kept[:, None] / count(kept)
        return sign * weight(v) * delta, None

    return with_rule(cross_entropy, lambda logits, labels: (cross_entropy(logits, labels), (logits, labels)), backward)


# causal attention, keys in chunks of four: the softmax is computed as it goes


def attention(q, k, v):
    """In plain JAX, all keys at once."""
    scores = q @ k.T / np.float32(np.sqrt(q.shape[1])).astype(q.dtype)
    scores = jnp.where(jnp.tri(len(q), dtype=bool), scores, -jnp.inf)
    return jax.nn.softmax(scores) @ v


def attention_with_rule(*, scale=1.0, row_term=1.0, dk_of=lambda parts: jnp.concatenate(parts), dq_of=sum,
                        masked=lambda p, start: p, order=lambda dq, dk, dv: (dq, dk, dv)):  # fmt: skip
    """The same in chunks, with the rule of flash attention: the probabilities are computed again from their sum."""
    chunk = 4

    def scores_of(q, k, start):
        s = q @ k[start : start + chunk].T / np.float32(np.sqrt(q.shape[1])).astype(q.dtype)
        seen = jnp.arange(start, start + chunk)[None] <= jnp.arange(len(q))[:, None]
        return jnp.where(seen, s, -jnp.inf), seen

    def in_chunks(q, k, v):
        top, total, out = jnp.full((len(q), 1), -jnp.inf, q.dtype), jnp.zeros((len(q), 1), q.dtype), jnp.zeros_like(v)
        for start in range(0, len(k), chunk):
            s, _ = scores_of(q, k, start)
            new = jnp.maximum(top, s.max(1, keepdims=True))
            p, old = jnp.exp(s - new), jnp.exp(top - new)
            top, total, out = new, total * old + p.sum(1, keepdims=True), out * old + p @ v[start : start + chunk]
        return out / total, top + jnp.log(total)

    def backward(saved, g):
        q, k, v, out, lse = saved
        row = row_term * (g * out).sum(1, keepdims=True)
        dq, dk, dv = [], [], []
        for start in range(0, len(k), chunk):
            s, _ = scores_of(q, k, start)
            p = masked(jnp.exp(s - lse), jnp.exp(q @ k[start : start + chunk].T / jnp.sqrt(8).astype(q.dtype) - lse))
            ds = p * (g @ v[start : start + chunk].T - row) * scale / np.float32(np.sqrt(q.shape[1])).astype(q.dtype)
            dq.append(ds @ k[start : start + chunk])
            dk.append(ds.T @ q)
            dv.append(p.T @ g)
        return order(dq_of(dq), dk_of(dk), jnp.concatenate(dv))

    def forward(q, k, v):
        out, lse = in_chunks(q, k, v)
        return out, (q, k, v, out, lse)

    return with_rule(lambda q, k, v: in_chunks(q, k, v)[0], forward, backward)


# rows of a table, of which row 0 is padding


def embedding(table, ids):
    """In plain JAX."""
    return table[ids] * (ids != 0)[:, None].astype(table.dtype)


def embedding_with_rule(
    *, put=lambda zeros, ids, v: zeros.at[ids].add(v), of=lambda ids: ids, pad=lambda ids: ids != 0
):
    """Its rule is a scatter."""

    def backward(saved, v):
        shape, ids = saved
        return put(jnp.zeros(shape, v.dtype), of(ids), v * pad(ids)[:, None].astype(v.dtype)), None

    return with_rule(embedding, lambda table, ids: (embedding(table, ids), (jnp.shape(table), ids)), backward)


# a convolution of a signal with five taps, and a bias


def convolution(x, taps, b):
    """In plain JAX, without padding: y[i] = sum_k x[i + k] taps[k] + b."""
    return sum(x[k : len(x) - 4 + k] * taps[k] for k in range(5)) + b


def convolution_with_rule(*, taps_of=lambda taps: taps, pad=lambda v: jnp.pad(v, 4), dt=lambda dt: dt,
                          db=lambda v: v.sum(0), keep=lambda x: x):  # fmt: skip
    """Its rule is two more of them."""

    def backward(saved, v):
        x, taps = saved
        wide = pad(v)
        dx = sum(wide[4 - k : 4 - k + len(x)] * taps_of(taps)[k] for k in range(5))
        dtaps = jnp.stack([(v * x[k : k + len(v)]).sum() for k in range(5)])
        return keep(dx), dt(dtaps), db(v)

    return with_rule(convolution, lambda x, taps, b: (convolution(x, taps, b), (x, taps)), backward)


# logsumexp of rows


def logsumexp(x):
    """In plain JAX."""
    return jax.scipy.special.logsumexp(x, axis=1)


def logsumexp_with_rule(*, weights=jax.nn.softmax, spread=lambda v: v[:, None], temperature=1.0):
    """Its rule is a softmax."""
    return with_rule(logsumexp, lambda x: (logsumexp(x), x), lambda x, v: (temperature * spread(v) * weights(x),))


# a straight-through estimator: rounded, with the gradient of a clip to [-1, 1], declared as such by its reference


def rounded(x):
    """In plain JAX, what is rounded is stopped."""
    clipped = jnp.clip(x, -1, 1)
    return clipped + jax.lax.stop_gradient(jnp.round(4 * clipped) / 4 - clipped)


def rounded_with_rule(*, inside=lambda x: jnp.abs(x) < 1, slope=1.0):
    """Its rule passes the cotangent where it is not clipped."""
    return with_rule(rounded, lambda x: (rounded(x), x), lambda x, v: (slope * v * inside(x).astype(v.dtype),))


# the fixed point z = tanh(A z + x), whose rule solves a linear equation


def iterate(A, x, n=60):
    """In plain JAX, unrolled."""
    z = jnp.zeros_like(x)
    for _ in range(n):
        z = jnp.tanh(A @ z + x)
    return z


def fixed_point_with_rule(*, transposed=lambda J: J.T, solve=jnp.linalg.solve, slope=lambda z: 1 - z**2, dA=jnp.outer):
    """`(I - J^T) u = v`, then the derivative of one more step."""

    def solution(A, x):
        return jax.lax.fori_loop(0, 60, lambda _, z: jnp.tanh(A @ z + x), jnp.zeros_like(x))

    def backward(saved, v):
        A, z = saved
        J = (1 - z**2)[:, None] * A
        u = solve(jnp.eye(len(z), dtype=z.dtype) - transposed(J), v) * slope(z)
        return dA(u, z), u

    return with_rule(solution, lambda A, x: ((z := solution(A, x)), (A, z)), backward)


# a matrix product with a bias as a Pallas kernel, in interpret mode: it computes in float32 whatever it is given


def product(x, W, b):
    """In plain JAX."""
    return x @ W + b[None]


def product_with_rule(*, dx=lambda v, W: v @ W.T, dW=lambda x, v: x.T @ v, db=lambda v: v.sum(0)):
    """The forward pass is a kernel, and its rule two more products."""

    def kernel(x_ref, w_ref, b_ref, out_ref):
        x, W, b = (ref[...].astype(jnp.float32) for ref in (x_ref, w_ref, b_ref))
        out_ref[...] = (jnp.dot(x, W) + b[None]).astype(out_ref.dtype)

    def run(x, W, b):
        return pl.pallas_call(kernel, jax.ShapeDtypeStruct((len(x), len(b)), x.dtype), interpret=True)(x, W, b)

    def backward(saved, v):
        x, W = saved
        return dx(v, W), dW(x, v), db(v)

    return with_rule(run, lambda x, W, b: (run(x, W, b), (x, W)), backward)


def first(v):
    """Of the rows, where a sum over them belongs."""
    return v[0]


LABELS = jnp.array([0, 3, -1, 4, 1, -1, 2])
IDS = jnp.array([3, 1, 3, 0, 6, 3, 2, 0])
BOTH = ("float32", "bfloat16")

CASES: dict[str, Case] = {
    "layer norm": Case(
        norm_with_rule, norm, (draw(0, 6, 8), 1 + draw(1, 8, scale=0.3), draw(2, 8)), {
            "the mean's term is missing": {"mean_term": 0.0},
            "x_hat's term is missing": {"hat_term": 0.0},
            "the weight is forgotten": {"scaled": lambda v, w: v},
            "the standard deviation twice": {"rstd_of": lambda rstd: rstd**2},
            "dw from the first row": {"dw": lambda v, x_hat: (v * x_hat)[0]},
            "dw without x_hat": {"dw": lambda v, x_hat: v.sum(0)},
            "db a mean": {"db": lambda v: v.mean(0)},
            "db not summed": {"db": lambda v: v},
            "db summed over the wrong axis": {"db": lambda v: jnp.full(v.shape[1], v.sum(), v.dtype)},
            "residuals of the last call": {"residuals": lambda kept: LAST_CALL["norm"]},
        }, dtypes=BOTH),
    "cross-entropy, masked": Case(
        cross_entropy_with_rule, cross_entropy, (draw(3, 7, 5), LABELS), {
            "the mask is forgotten": {"kept_of": lambda labels: jnp.ones_like(labels)},
            "divided by all rows": {"count": lambda kept: len(kept)},
            "the cotangent is ignored": {"weight": lambda v: jnp.ones_like(v)},
            "labels one off": {"label": lambda y: jnp.maximum(y, 0) + 1},
            "the label is not subtracted": {"one_hot": 0.0},
            "the sign": {"sign": -1.0},
        }, dtypes=BOTH),
    "attention in chunks": Case(
        attention_with_rule, attention, tuple(draw(s, 8, 8) for s in (4, 5, 6)), {
            "the scale is forgotten": {"scale": np.float32(np.sqrt(8))},
            "the row's term is missing": {"row_term": 0.0},
            "dk of the last chunk only": {"dk_of": lambda parts: jnp.concatenate([0 * parts[0], parts[1]])},
            "dq not accumulated": {"dq_of": lambda parts: parts[-1]},
            "the causal mask is forgotten": {"masked": lambda p, unmasked: unmasked},
            "dk and dv swapped": {"order": lambda dq, dk, dv: (dq, dv, dk)},
        }),
    "embedding": Case(
        embedding_with_rule, embedding, (draw(7, 7, 4), IDS), {
            "set, not added": {"put": lambda zeros, ids, v: zeros.at[ids].set(v)},
            "ids one off": {"of": lambda ids: (ids + 1) % 7},
            "padding has a gradient": {"pad": lambda ids: jnp.ones_like(ids)},
            "integer division": {"put": lambda zeros, ids, v: zeros.at[ids].add(v * (1 // 2))},
        }, dtypes=BOTH),
    "convolution": Case(
        convolution_with_rule, convolution, (draw(8, 20), draw(9, 5), draw(10, 1)[0]), {
            "the taps are not reversed": {"taps_of": lambda taps: taps[::-1]},
            "dtaps reversed": {"dt": lambda dt: dt[::-1]},
            "padding one off": {"pad": lambda v: jnp.pad(v, (5, 3))},
            "the bias has no gradient": {"db": lambda v: jnp.zeros_like(v[0])},
            "zero at the border": {"keep": lambda x: x.at[0].set(0)},
        }),
    "logsumexp": Case(
        logsumexp_with_rule, logsumexp, (draw(11, 5, 5),), {
            "the cotangent along the wrong axis": {"spread": lambda v: v[None]},
            "not normalized": {"weights": jnp.exp},
            "only of the largest": {"weights": lambda x: (x == x.max(1, keepdims=True)).astype(x.dtype)},
            "1.001 times": {"temperature": np.float32(1.001)},
        }),
    "straight-through": Case(
        rounded_with_rule, rounded, (draw(12, 12),), {
            "no gradient": {"slope": 0.0},
            "not clipped": {"inside": lambda x: jnp.ones_like(x)},
        }, stopped=("args[0]",)),
    "fixed point": Case(
        fixed_point_with_rule, iterate, (draw(13, 6, 6, scale=0.2), draw(14, 6)), {
            "the matrix is not transposed": {"transposed": lambda J: J},
            "one step, not solved": {"solve": lambda A, v: v},
            "the slope of the last step": {"slope": lambda z: jnp.ones_like(z)},
            "dA transposed": {"dA": lambda u, z: jnp.outer(z, u)},
        }),
    "Pallas product": Case(
        product_with_rule, product, (draw(15, 2400, 8), draw(16, 8, 8), draw(17, 8)), {
            "W not transposed": {"dx": lambda v, W: v @ W},
            "dW transposed": {"dW": lambda x, v: v.T @ x},
            "db from the first row": {"db": first},
            "sums rounded at each step": {"dW": lambda x, v: in_steps(x[:, :, None] * v[:, None, :])},
        }, dtypes=BOTH),
}  # fmt: skip
ONLY_IN_HALF = {"sums rounded at each step"}  # in float32 that is how sums are computed


def rows(only="") -> list[tuple[str, str, str, dict[str, Any]]]:
    """`(function, dtype, mistake, hooks)`; without a mistake first."""
    return [
        (name, dtype, mistake, hooks)
        for name, case in CASES.items()
        for dtype in case.dtypes
        for mistake, hooks in ({"none": {}} | case.mistakes).items()
        if dtype.startswith(only) and not (mistake in ONLY_IN_HALF and dtype == "float32")
    ]


def check(name, dtype, hooks, **settings) -> testing.Report:
    """The report of `check_vjp` on one of the `rows`."""
    case = CASES[name]
    args = tuple(a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in case.args)
    return testing.check_vjp(
        case.make(**hooks), *args, reference=case.reference, stopped=case.stopped, accuracy=case.accuracy, **settings
    )


def notices(checker, name, dtype, hooks) -> bool:
    """Whether another checker raises an error."""
    case = CASES[name]
    floating = [a.astype(dtype) for a in case.args if jnp.issubdtype(a.dtype, jnp.floating)]
    others = [a for a in case.args if not jnp.issubdtype(a.dtype, jnp.floating)]
    with suppress(Exception):
        checker(lambda *floating: case.make(**hooks)(*floating, *others), tuple(floating))
        return False
    return True


def cause_in(report) -> str:
    """What a report says about the cause, without the numbers."""
    said = [note for note in report.notes if "exactly" in note or "ignored" in note]
    said += [row.fault.split("are wrong; ")[1] for row in report.rows if "are wrong; " in row.fault]
    said += [row.fault for row in report.rows if row.leaf in ("backward pass", "run again") and row.fault]
    said += [row.fault for row in report.rows if "accumulated" in row.fault]
    return said[0] if said else ""


def main(only: str = "") -> int:
    """Print the table in Markdown; return 1 if funcnet missed a mistake or rejected a correct rule."""
    import chex  # pyright: ignore[reportMissingImports]  (in the extra `bench`)

    others = {
        "check_grads": lambda f, args: check_grads(f, args, order=1, modes=["rev"]),
        "chex": lambda f, args: chex.assert_numerical_grads(f, args, order=1, modes=["rev"]),
    }
    print("| function | dtype | mistake | funcnet | check_grads | chex | what the report says |\n|" + " --- |" * 7)
    caught, named, wrong, seen = dict.fromkeys(["funcnet", *others], 0), 0, 0, 0
    for name, dtype, mistake, hooks in rows(only):
        report = check(name, dtype, hooks)
        found = {"funcnet": not report.ok} | {o: notices(checker, name, dtype, hooks) for o, checker in others.items()}
        cause = cause_in(report) if hooks else ""
        cells = ["noticed" if noticed else "-" for noticed in found.values()]
        print(f"| {name} | {dtype} | {mistake} | {' | '.join(cells)} | {cause} |", flush=True)
        wrong += found["funcnet"] != bool(hooks)
        if hooks:
            seen, named = seen + 1, named + bool(cause)
            caught = {checker: caught[checker] + found[checker] for checker in caught}
    print(f"\nof {seen} mistakes: {caught}; the cause is named in {named}; {wrong} wrong verdicts of funcnet")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
