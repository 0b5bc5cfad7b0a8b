"""The tester, tested: wrong gradients planted, right ones let through, and what a report says."""

import re
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import false_alarms
import jax
import jax.numpy as jnp
import mutants
import numpy as np
import oracle
import pytest

import funcnet
from funcnet import Network, activations, losses, testing
from funcnet.activations import Activation
from funcnet.losses import Loss
from funcnet.testing.__main__ import COLUMNS, matrix


@pytest.fixture(scope="module")
def call():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)).astype(np.float32), rng.integers(0, 3, 7).astype(np.int32)
    return oracle.network(0, (4, 5, 5, 3), np.float32), x, y


def caught(name, sizes, dtype):
    mutant = partial(mutants.backward, **mutants.MUTANTS[name])
    return mutants.funcnet_notices(mutant, mutants.case(sizes, dtype, name))


@pytest.mark.parametrize("name", [*mutants.MUTANTS][::3])
def test_every_third_mutant_is_caught(name):
    """In float32, that is; the checker judges such a gradient in float64 too."""
    assert caught(name, (4, 5, 3), "float32")


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "dtype"), [((4, 5, 3), "float64"), ((784, 256, 10), "float32")], indirect=["dtype"])
@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_every_mutant_is_caught_in_a_small_and_a_large_network(name, sizes, dtype):
    """The other way round by `scripts/checks/mutants.py`: the checker judges in float64 in any case."""
    assert caught(name, sizes, dtype)


@pytest.mark.parametrize("sizes", [(4, 5, 3), (4, 5, 5, 3), pytest.param((784, 256, 10), marks=pytest.mark.slow)])
def test_the_correct_one_is_not(sizes, dtype):
    report = testing.check_gradients(mutants.objective, jax.jit(mutants.backward), mutants.case(sizes, dtype))
    assert report.ok, str(report)
    assert report.worst <= 16


@pytest.mark.slow
def test_no_false_alarm_in_a_short_sweep(capsys):
    """Of three networks."""
    status = false_alarms.main(cases=30, seed=1, draws=10)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert printed.startswith("0 of 30 correct gradients rejected (seed 1: ")


def test_a_false_alarm_is_printed_with_what_reproduces_it(monkeypatch, capsys):
    report = testing.Report("backward", (testing.Row("layer 1 W", (4, 5), np.inf, False, ""),))
    monkeypatch.setattr(testing, "check_backward", lambda *args, **arrays: report)
    assert false_alarms.main(cases=5, seed=7, draws=2) == 1
    printed = capsys.readouterr().out
    scripts = re.findall(r"backward: WRONG\nlayer 1 W .*\nto reproduce: python (\S+)\n", printed)
    assert all("testing.check_backward" in Path(script).read_text() for script in scripts)
    assert len(scripts) == 5
    assert "5 of 5 correct gradients rejected" in printed


def test_there_are_37_mutants():
    assert len(mutants.MUTANTS) == 37
    assert mutants.SQUARE.issubset(mutants.MUTANTS)


EVERYTHING = [((), False, "float32"), ((7,), True, "float64"), ((1, 7), True, "float32")]  # two share programs


def check_everything(leading, masked, dtype):
    rng = np.random.default_rng(0)
    params = oracle.network(0, (4, 5, 3), dtype)
    x, y = rng.normal(size=(*leading, 4)).astype(dtype), rng.uniform(size=(*leading, 3)).astype(dtype)
    arrays = {"sample_weight": rng.uniform(0.5, 1, leading).astype(dtype)}
    if masked:
        arrays["masks"] = tuple((rng.uniform(size=(*leading, n)) < 0.7).astype(dtype) for n in (4, 5))
    network = Network(activations.gelu, activations.tanh, losses.sigmoid_cross_entropy)
    report = testing.check_backward(params, x, y, network, **arrays)
    assert report.ok, str(report)
    assert [row.leaf for row in report.rows] == [
        *("layer 1 W", "layer 1 b", "layer 2 W", "layer 2 b"),
        *("run again", "mean of samples", "vmap and loop"),
    ]
    assert all("in float64" in row.rungs and "differences" in row.rungs for row in report.rows[:4])


@pytest.mark.parametrize(("leading", "masked", "dtype"), EVERYTHING, indirect=["dtype"])
def test_backward_with_everything_passes(leading, masked, dtype):
    check_everything(leading, masked, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_backward_with_each_of_everything_passes(leading, masked, dtype):
    check_everything(leading, masked, dtype)


@pytest.mark.parametrize("half", [pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.bfloat16])
def test_half_precision_is_judged_by_its_own_eps(half, call):
    params, x, y = call
    assert testing.check_backward(jax.tree.map(lambda p: jnp.asarray(p, half), params), x, y).ok
    report = testing.check_backward(params, x, y, Network(activations.tanh, compute_dtype=half))
    assert report.ok
    assert f"jax.grad in {np.dtype(half).name}" in report.rows[0].rungs


def wrong(change):
    """funcnet's backward with a mistake in what it is called with, or in what it gives."""

    def backward(params, x, y, network=Network(), **arrays):
        params, x, y, settings, finish = change(params, x, y, {"network": network} | arrays)
        return finish(funcnet.backward(params, x, y, **settings))

    return backward


def same(grads):
    return grads


FLAT = Activation("tanh", jnp.tanh, lambda z, a: jnp.ones_like(z))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, x, y, s: (p, x, y, s, lambda g: jax.tree.map(jnp.negative, g)), "the sign is wrong"),
        pytest.param(
            lambda p, x, y, s: (p, x, y, s, lambda g: jax.tree.map(lambda g: 7 * g, g)),
            "all of it is 7 times", marks=pytest.mark.slow),
        pytest.param(
            lambda p, x, y, s: (p, x, y, s, lambda g: [g[0], (g[1][0].T, g[1][1]), g[2]]),
            "layer 2 W: .* transposed", marks=pytest.mark.slow),
        (
            lambda p, x, y, s: (p, x, y, s, lambda g: [(g[0][0].at[2, 3].set(0), g[0][1]), *g[1:]]),
            r"layer 1 W: worst at \(2, 3\): 0, expected .*; 5.00% of the entries are wrong; 1 entries are zero",
        ),
        pytest.param(
            lambda p, x, y, s: (p, x, y, s, lambda g: [(g[0][0], jnp.full_like(g[0][1], g[0][1].sum())), *g[1:]]),
            "layer 1 b: .* all entries are the same: summed over the units too", marks=pytest.mark.slow),
        (
            lambda p, x, y, s: (p, x, y, s | {"network": Network(FLAT)}, same),
            "exactly the gradient that results if the derivative of the hidden activation is missing",
        ),
        pytest.param(
            lambda p, x, y, s: (p, x, (y + 1) % 3, s, same),
            "exactly the gradient that results if the class ids are [+]1 off", marks=pytest.mark.slow),
        pytest.param(
            lambda p, x, y, s: (p, x, y, {k: v for k, v in s.items() if k != "masks"}, same),
            "exactly the gradient that results if the masks are forgotten", marks=pytest.mark.slow),
        pytest.param(
            lambda p, x, y, s: (p, x, y, {k: v for k, v in s.items() if k != "sample_weight"}, same),
            "exactly the gradient that results if the sample weights are forgotten", marks=pytest.mark.slow),
        (
            lambda p, x, y, s: (p, x, y, s, lambda g: [*[(2 * W, 2 * b) for W, b in g[:2]], g[2]]),
            "wrong up to layer 2, correct after it: look at delta_2",
        ),
        (lambda p, x, y, s: (p, x, y, s, lambda g: [(g[0][0].T, g[0][1]), *g[1:]]), r"\(5, 4\), expected .*transposed"),
        (lambda p, x, y, s: (p, x, y, s, lambda g: g[:2]), "the tree is PyTreeDef"),
        (lambda p, x, y, s: (p, x, y, s, lambda g: jax.tree.map(lambda g: g * np.nan, g)), "it is not finite"),
    ],
)  # fmt: skip
def test_the_report_says_what_it_looks_like(call, change, said):
    """Slow: causes of a kind that another one here shows."""
    params, x, y = call
    masks = tuple((np.random.default_rng(n).uniform(size=(7, n)) < 0.7).astype(np.float32) for n in (4, 5, 6))
    arrays = {"masks": (*masks[:2], None), "sample_weight": np.linspace(0.5, 1, 7, dtype=np.float32)}
    report = testing.check_backward(params, x, y, Network(activations.tanh), backward=wrong(change), **arrays)
    assert not report.ok
    assert str(report).startswith("backward: WRONG\n")
    assert re.search(said, str(report)), str(report)


def test_an_assertion_is_its_report_and_can_be_run_again(call, capsys):
    params, x, y = call
    broken = [*params[:2], (params[2][0] * np.float32(np.nan), params[2][1])]
    network, w = Network((activations.leaky_relu(0.3), activations.elu)), np.ones(7, np.float32)
    testing.assert_backward(params, x, y, network, sample_weight=w)
    testing.assert_backward(broken, x, y, network, sample_weight=w)  # NaN where jax.grad has NaN
    twice = wrong(lambda p, x, y, s: (p, x, y, s, lambda g: jax.tree.map(lambda g: 2 * g, g)))
    with pytest.raises(AssertionError) as failure:
        testing.assert_backward(params, x, y, network, backward=twice, sample_weight=w)
    assert "layer 1 W        (4, 5)" in str(failure.value)
    script = Path(re.search(r"to reproduce: python (\S+)", str(failure.value))[1])
    text = script.read_text()
    assert len(text.splitlines()) == 5
    assert "Network(hidden=(leaky_relu(0.3), elu)), backward=..." in text
    script.write_text(text.replace("backward=...", "backward=__import__('funcnet').backward"))
    runpy.run_path(str(script))
    assert capsys.readouterr().out.startswith("backward: ok")


def test_a_function_of_one_s_own_is_not_taken_for_the_shipped_one_of_its_name(call):
    mine = Activation("relu", jnp.sin, lambda z, a: jnp.cos(z)), replace(losses.squared_error, delta=jnp.subtract)
    script = testing.save_case(*call, Network(mine[0], loss=mine[1]))
    assert "Network(hidden=Activation('relu', ...), loss=Loss('squared_error', ...))" in script.read_text()


def right_hand(slope):
    """ReLU with another slope at 0."""
    fn = activations.relu.fn
    return Activation("relu", fn, lambda z, a: jnp.where(z == 0, slope, activations.relu.deriv(z, a)))


@jax.jit
def backward_right_hand(slope, params, x, y, arrays):
    """One program for all slopes."""
    return funcnet.backward(params, x, y, Network(right_hand(slope)), **arrays)


@pytest.mark.parametrize(("slope", "ok"), [(0.5, True), (-0.5, False), *(
    pytest.param(side, side <= 1, marks=pytest.mark.slow) for side in (0.0, 1.0, 1.5))])  # fmt: skip
def test_at_a_kink_either_side_is_right_and_nothing_else(slope, ok, call):
    """A unit that is exactly at 0 for two samples of seven. Slow: the other slopes between the sides and outside."""
    params, x, y = call
    x = x.copy()
    x[2] = x[5] = 0
    params = [(params[0][0], params[0][1] * np.array([1, 1, 0, 1, 1], np.float32)), *params[1:]]

    def backward(params, x, y, **arrays):
        return backward_right_hand(slope, params, x, y, arrays)

    report = testing.check_backward(params, x, y, Network(activations.relu), backward=backward)
    assert report.ok == ok, str(report)
    assert "2 of 7 samples are within rounding of a kink" in str(report)
    assert ("outside the gradients on the two sides" in str(report)) != ok
    assert bool(report) == ok


def test_it_says_how_many_samples_at_kinks_are_judged(call):
    params, _, _ = call
    params = [(params[0][0], params[0][1] * np.array([1, 1, 0, 1, 1], np.float32)), *params[1:]]
    x, y = np.zeros((40, params[0][0].shape[0]), np.float32), np.zeros(40, np.int32)

    def backward(params, x, y, **arrays):
        return backward_right_hand(1.5, params, x, y, arrays)

    report = testing.check_backward(params, x, y, Network(activations.relu), backward=backward)
    assert not report
    assert "40 of 40 samples are within rounding of a kink; the first 32 of them are judged one by one" in str(report)
    assert sum(row.leaf.startswith("sample") for row in report.rows) == 32


def test_a_mistake_elsewhere_is_found_beside_kinks(call):
    params, x, y = call
    x = np.where(np.isin(np.arange(7), (2, 5))[:, None], np.float32(0), x)
    params = [(W, b * 0) for W, b in params]
    report = testing.check_backward(
        params, x, y, backward=wrong(lambda p, x, y, s: (p, x, y, s, lambda g: jax.tree.map(lambda g: 1.0001 * g, g)))
    )
    assert not report.ok
    assert "all of it is 1.0001 times" in str(report)


def test_a_function_with_a_wrong_rule_of_its_own_is_found():
    @jax.custom_jvp
    def sine(z):
        return jnp.sin(z)

    sine.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), 1.01 * jnp.cos(primals[0]) * tangents[0]))
    fn = lambda p: sine(p).sum()  # noqa: E731
    report = testing.check_gradients(fn, lambda p: 1.01 * jnp.cos(p), (jnp.linspace(0.1, 1, 5),))
    assert not report.ok
    assert "equals jax.grad, but not the differences of the function" in str(report)
    report = testing.check_gradients(fn, jnp.cos, (jnp.linspace(0.1, 1, 5),))
    assert "but the differences of the function agree with it, not with jax.grad" in str(report)


def test_a_function_of_float32_alone_is_judged_there():
    fn = lambda p: jnp.sum(p.astype(jnp.float32) ** 2)  # noqa: E731
    report = testing.check_gradients(fn, lambda p: 2 * p, (jnp.arange(1.0, 4.0),))
    assert report.ok
    assert "not judged in float64: TypeError: the value is float32 where the arguments are float64" in str(report)
    assert not testing.check_gradients(fn, lambda p: 2.0002 * p, (jnp.arange(1.0, 4.0),)).ok


def test_infinities_are_reported_not_warned_of():
    args = (jnp.array([0.0, 1.0]),)
    root, slope = lambda p: jnp.sum(jnp.sqrt(p)), lambda p: 0.5 / jnp.sqrt(p)  # infinite at 0
    assert testing.check_gradients(root, slope, args).ok
    assert not testing.check_gradients(root, lambda p: 2 * slope(p), args).ok
    tree = [np.array([np.inf, -np.inf, 1.0])]
    testing.assert_tree_close(tree, tree)
    with pytest.raises(AssertionError, match="WRONG"):
        testing.assert_tree_close(tree, [-tree[0]])


def test_any_tree_and_other_arguments():
    def fn(tree, scale, ids):
        return scale * jnp.sum(tree["a"][ids] * jnp.exp(tree["b"][0]))

    def grad_fn(tree, scale, ids):
        e = jnp.exp(tree["b"][0])
        return {"a": jnp.zeros_like(tree["a"]).at[ids].add(scale * e), "b": (scale * tree["a"][ids].sum() * e,)}

    args = ({"a": jnp.arange(1.0, 5.0), "b": (jnp.float32(0.3),)}, jnp.float32(2), jnp.array([1, 3]))
    report = testing.check_gradients(fn, grad_fn, args)
    assert report.ok, str(report)
    assert [row.leaf for row in report.rows] == ["args[0]['a']", "args[0]['b'][0]"]


def constant(slope):
    """A gradient that is the same everywhere."""
    return lambda p: jnp.asarray(slope, p.dtype)


def hinge(p):
    return jnp.maximum(0, 1 - p @ jnp.asarray([4.0, 3.0], p.dtype))


KINDS = [("jax", "float32"), ("numpy", "float32"), ("jax", "float64")]
AT_KINKS = {  # a function, a point at a kink of it, correct gradients there, wrong ones
    "max(z, 0)": (lambda z: jnp.maximum(z, 0).sum(), [0.0, 0.0, 0.0], [0, 1, [0.3, 1, 0]], [1.5, -0.2, [0, 1, 1.1]]),
    "relu": (lambda z: jax.nn.relu(z).sum(), [0.0, 2.0], [[1, 1], [0.5, 1]], [[0.5, 1.0001], [2, 1]]),
    "|z|": (lambda z: jnp.abs(z).sum(), [0.0, 0.0], [0, 1, -1, [1, -1]], [1.1, [0, -2]]),
    "hinge": (hinge, [0.1, 0.2], [[0, 0], [-4, -3], [-2, -1.5]], [[-4, 0], [-8, -6], [4, 3]]),
    "max": (jnp.max, [1.0, 1.0, 0.5], [[1, 0, 0], [0, 1, 0], [0.2, 0.8, 0]], [[0, 0, 0], [1, 1, 0], [0.5, 0.4, 0.1]]),
    "median": (jnp.median, [1.0, 2.0, 2.0, 2.0, 3.0], [[0, 1, 0, 0, 0], [0, 0.5, 0.5, 0, 0]], [[0, 1, 1, 1, 0]]),
    "clip": (lambda z: jnp.clip(z, -1, 1).sum(), [-1.0, 1.0, 0.0], [[0, 1, 1], [1, 0, 1]], [[7, 1, 1], [1, 1, 0.9]]),
}


@pytest.mark.parametrize(
    ("name", "written_in", "dtype"),
    [  # what is of NumPy in float64 is judged in float32, too
        pytest.param(name, *kind, marks=[] if kind == KINDS[i % 3] else pytest.mark.slow)
        for i, name in enumerate(AT_KINKS)
        for kind in KINDS
    ],
    indirect=["dtype"],
)
def test_at_a_kink_of_any_function_each_mixture_of_its_sides_is_correct(name, written_in, dtype):
    """Also where differences alone judge: through a callback, which JAX cannot differentiate."""
    fn, point, correct, wrong = AT_KINKS[name]
    fn, p = jax.jit(fn), np.asarray(point, dtype)
    if written_in == "numpy":
        as_jax, fn = fn, lambda p: np.asarray(as_jax(np.asarray(p)))
    for slopes, ok in ((correct, True), (wrong, False)):
        for slope in slopes:
            report = testing.check_gradients(fn, constant(np.broadcast_to(slope, p.shape)), (p,))
            assert report.ok == ok, f"{slope}\n{report}"


def test_where_jax_grad_is_no_number_another_may_be():
    p = jnp.zeros(3)
    norm, root = lambda p: jnp.sqrt(jnp.sum(p**2)), lambda p: jnp.sqrt(jnp.abs(p)).sum()
    assert testing.check_gradients(norm, jnp.zeros_like, (p,)).ok  # between the unit vectors around
    assert not testing.check_gradients(norm, lambda p: p + 2, (p,)).ok
    assert not testing.check_gradients(root, jnp.zeros_like, (p,)).ok  # infinite on either side
    half = jnp.zeros(3, jnp.bfloat16)
    for slope, ok in ((1, True), (1.25, False)):
        assert testing.check_gradients(lambda p: jnp.maximum(p, 0).sum(), constant(np.full(3, slope)), (half,)).ok == ok


def test_a_kink_far_from_an_entry_is_none_of_its():
    """A push is as long as its own entry asks for, not the largest of the leaf."""
    for large in (1e5, 1e6):
        for slope, ok in ((1.0, True), (0.3, False)):
            report = testing.check_gradients(
                lambda z: jax.nn.relu(z).sum(), constant([1.0, slope]), (jnp.array([large, 0.5]),)
            )
            assert report.ok == ok, str(report)
            assert "equals jax.grad" not in str(report)


def test_where_jax_grad_is_nan_through_a_where_the_correct_gradient_passes():
    fn, p = lambda z: jnp.where(z == 0, 1.0, jnp.sin(z) / z).sum(), jnp.arange(3.0)

    def slope(z, at_zero=0.0):
        safe = jnp.where(z == 0, 1, z)
        return jnp.where(z == 0, at_zero, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe).astype(z.dtype)

    report = testing.check_gradients(fn, slope, (p,))
    assert report.ok, str(report)
    assert "differences alone" in str(report)
    for bad in (lambda z: slope(z, 0.1), lambda z: 1.01 * slope(z), jax.grad(fn)):
        assert not testing.check_gradients(fn, bad, (p,)).ok


def test_a_tie_of_many_entries_is_judged_as_one():
    first = lambda p: jnp.zeros_like(p).at[jnp.argmax(p)].set(1)  # noqa: E731
    assert testing.check_gradients(jnp.max, first, (jnp.zeros(40),)).ok
    hinge, p = lambda p: jnp.maximum(0, 1 - p.sum()), jnp.eye(40)[0]
    for n, ok in ((40, True), (0, True), (14, False)):
        assert testing.check_gradients(hinge, constant(np.where(np.arange(40) < n, -1, 0)), (p,)).ok == ok


def test_a_backward_for_batches_alone_is_judged_as_far_as_it_can_be():
    params = funcnet.init(jax.random.key(0), (4, 5, 3))
    x, y = jax.random.normal(jax.random.key(1), (7, 4)), jnp.array([0, 1, 2, 0, 1, 2, 0])

    def for_batches(params, x, y, network):
        assert x.ndim == 2, "expected a batch"
        return funcnet.backward(params, x, y, network)

    report = testing.check_backward(params, x, y, Network(funcnet.tanh), backward=for_batches)
    assert report.ok, str(report)
    assert "the samples one by one: not tried, AssertionError: expected a batch" in str(report)


def test_in_half_precision_not_every_unit_is_at_a_kink():
    (W, b), (V, c) = funcnet.init(jax.random.key(0), (784, 20, 3))
    params, network = [(W, b), (1e-5 * V, c)], Network(compute_dtype=jnp.bfloat16)
    x, y = jax.random.uniform(jax.random.key(1), (16, 784)), jnp.arange(16) % 3

    def without_the_first(*args):
        first, last = funcnet.backward(*args)
        return [jax.tree.map(jnp.zeros_like, first), last]

    assert testing.check_backward(params, x, y, network).ok
    assert not testing.check_backward(params, x, y, network, backward=without_the_first).ok


def test_wrong_shapes_at_a_kink_are_said_in_words():
    params = [(W, jnp.zeros_like(b)) for W, b in funcnet.init(jax.random.key(0), (4, 5, 3))]
    x, y = jnp.zeros((2, 4)), jnp.array([0, 1])
    for wrong, said in (
        (lambda *args: funcnet.backward(*args)[:1], "the tree is"),
        (lambda *args: [(W.T, b) for W, b in funcnet.backward(*args)], r"float32 \(5, 4\), expected float32 \(4, 5\)"),
    ):
        report = testing.check_backward(params, x, y, backward=wrong)
        assert re.search(said, str(report)), str(report)
    p = jnp.ones((4, 3))
    assert "args[0]: float32 (3, 4), expected float32 (4, 3)" in str(
        testing.check_gradients(jnp.sum, jnp.transpose, (p,))
    )


def test_a_function_that_takes_no_float64_cannot_be_judged():
    def fn(p):
        if np.asarray(p).dtype != np.float32:
            raise TypeError("float32 only")
        return np.sin(np.asarray(p)).sum()

    report = testing.check_gradients(fn, lambda p: np.cos(np.asarray(p)), (np.ones(3, np.float32),))
    assert "args[0]: cannot be judged: differences need float64, where it raises TypeError: float32 only" in str(report)


def test_infinities_in_both_are_no_difference():
    a, b = (np.array([np.inf, last], np.float32) for last in (2, 1))
    with pytest.raises(AssertionError, match=r"worst at \(1,\): 2, expected 1; 50.00% of the entries are wrong"):
        testing.assert_tree_close([a], [b])


def test_a_kink_at_the_end_of_the_grid():
    f = Activation("clipped", lambda z: jnp.clip(z, 0, 20), lambda z, a: ((z > 0) & (z < 20)).astype(z.dtype))
    report = testing.check_activation(f)
    assert report.ok, str(report)
    assert testing.find_kinks(f) == (0.0, 20.0)


def test_many_kinks_at_once():
    fn, p = lambda p: jax.nn.relu(p).sum(), jnp.where(jnp.arange(100) % 3 == 0, 1.0, 0.0)
    slope = np.where(p == 1, 1.0, np.arange(100) % 2)
    assert testing.check_gradients(fn, constant(slope), (p,)).ok
    for i, bad in ((50, 1.01), (99, 0.99)):  # at a kink, and not
        assert not testing.check_gradients(fn, constant(np.where(np.arange(100) == i, bad, slope)), (p,)).ok


def test_a_function_in_numpy_is_judged_by_differences():
    for p in (np.linspace(0.1, 1, 6).reshape(2, 3), np.linspace(0, 1, 300, dtype=np.float32), np.float64(0.3)):
        fn, grad_fn = lambda p: (np.sin(p) ** 2).sum(), lambda p: np.sin(2 * p)
        report = testing.check_gradients(fn, grad_fn, (p,))
        assert report.ok, str(report)
        assert re.search(r"jax.grad cannot differentiate it \(TracerArray.*\): differences alone judge", str(report))
        for bad in (lambda p: 1.0001 * np.sin(2 * p), np.zeros_like, lambda p: np.full_like(p, np.nan)):
            assert not testing.check_gradients(fn, bad, (p,)).ok
    rough = lambda p: np.float32(np.sin(p).sum())  # noqa: E731
    report = testing.check_gradients(rough, np.cos, (np.linspace(0.1, 1, 6),))
    assert "cannot be judged: the value is float32 where the arguments are float64" in str(report)
    assert not report.ok


def test_a_rule_that_gives_zero_is_noticed_unless_it_is_meant():
    def fn(p):
        return jnp.sum(jax.lax.stop_gradient(p["a"]) * p["b"])

    def grad_fn(p):
        return {"a": jnp.zeros_like(p["a"]), "b": p["a"]}

    args = ({"a": jnp.arange(1.0, 4.0), "b": jnp.arange(2.0, 5.0)},)
    report = testing.check_gradients(fn, grad_fn, args)
    assert [row.ok for row in report.rows] == [False, True]
    assert "equals jax.grad, but not the differences of the function" in str(report)
    report = testing.check_gradients(fn, grad_fn, args, stopped=["args[0]['a']"])
    assert report.ok
    assert "stopped on purpose: no differences" in str(report)
    wrong = lambda p: {"a": p["b"], "b": p["a"]}  # noqa: E731
    assert not testing.check_gradients(fn, wrong, args, stopped=["args[0]['a']"]).ok
    with pytest.raises(
        ValueError, match=r"stopped has args\[0\]\['c'\], expected names of leaves: args\[0\]\['a'\], args\[0\]\['b'\]"
    ):
        testing.check_gradients(fn, grad_fn, args, stopped=["args[0]['c']"])


def test_other_bits_in_another_call_are_noticed():
    rng, args = np.random.default_rng(0), (jnp.arange(1.0, 4.0),)
    fn = lambda p: jnp.sum(jnp.sin(p))  # noqa: E731
    report = testing.check_gradients(fn, lambda p: jnp.cos(p) + jnp.asarray(1e-12 * rng.normal(), p.dtype), args)
    assert [row.leaf for row in report.rows if not row.ok] == ["run again"]


def test_what_check_gradients_takes_and_what_it_refuses():
    def check(fn, grad_fn, *args):
        report = testing.check_gradients(fn, grad_fn, args)
        assert report.ok, str(report)
        assert "not judged in float64" not in str(report)

    sine = lambda p, *_: jnp.sum(jnp.sin(p))  # noqa: E731
    cosine = lambda p, *_: jnp.cos(p)  # noqa: E731
    check(sine, cosine, 0.5)
    check(sine, cosine, np.float32(0.5), "a name", None, len, jax.random.key(0), 3)
    check(lambda p: jnp.sin(p[0]) * p[1], lambda p: [jnp.cos(p[0]) * p[1], jnp.sin(p[0])], [0.5, 2.0])
    check(lambda p: sine(p["a"]), lambda p: {"a": jnp.cos(p["a"]), "b": p["b"], "c": None},
          {"a": jnp.ones(3), "b": jnp.zeros((0, 2)), "c": None})  # fmt: skip
    for args, said in (
        (jnp.arange(3.0), r"args is .*, expected a tuple of all arguments"),
        ((), "args is tuple, expected a tuple of all arguments"),
        (({},), r"args\[0\] is {}, which has no leaves"),
        (
            ({"a": jnp.ones(2), "i": jnp.arange(3)},),
            r"\['i'\] has dtype int32, expected a floating .* another argument",
        ),
        ((2,), r"args\[0\] has dtype int, expected a floating one"),
        ((jnp.ones(2, complex),), r"args\[0\] has dtype complex64.* as two leaves"),
        ((jax.random.key(0),), r"args\[0\] has dtype key<fry>, expected a floating one"),
    ):
        with pytest.raises(ValueError, match=said):
            testing.check_gradients(sine, cosine, args)
    with pytest.raises(ValueError, match=r"sin returns \(3,\), expected a scalar"):
        testing.check_gradients(jnp.sin, cosine, (jnp.ones(3),))


@pytest.mark.parametrize("act", [*activations.SHIPPED, activations.leaky_relu(0.5)], ids=lambda act: act.name)
def test_shipped_activations_pass(act):
    report = testing.check_activation(act)
    assert report.ok, str(report)


GRIDS = ["float32", "float64", "differences"]


def hard_tanh(slope):
    """With that slope at the ends of its clip."""
    return Activation(
        "hard tanh",
        lambda z: jnp.clip(z, -1, 1),
        lambda z, a: jnp.where(jnp.abs(z) == 1, jnp.asarray(slope, z.dtype), (jnp.abs(z) < 1).astype(z.dtype)),
    )


HARD_TANH = hard_tanh(0)


@pytest.mark.parametrize(
    ("act", "wrong_rows"),
    [
        (HARD_TANH, []),
        (hard_tanh(0.7), []),
        (hard_tanh(7), ["kink at -1", "kink at 1"]),
        (Activation("sine", jnp.sin, lambda z, a: 1.0001 * jnp.cos(z)), GRIDS),
        (Activation("sine", jnp.sin, lambda z, a: jnp.where(z > 3, 0.0, jnp.cos(z))), GRIDS),
        (right_hand(2.0), ["kink at 0"]),
        (Activation("sum", lambda z: z - z.sum(), lambda z, a: jnp.ones_like(z)), GRIDS),
        (Activation("first", lambda z: z, lambda z, a: jnp.ones_like(z[:1])), ["elementwise"]),
    ],
)
def test_activations_of_a_user_s(act, wrong_rows):
    report = testing.check_activation(act)
    assert [row.leaf for row in report.rows if not row.ok] == wrong_rows, str(report)


def test_kinks_are_found():
    assert testing.find_kinks(activations.relu) == (0.0,)
    assert testing.find_kinks(HARD_TANH) == pytest.approx((-1, 1))
    shifted = Activation("shifted", lambda z: jnp.abs(z - np.pi), lambda z, a: jnp.sign(z - np.pi))
    assert testing.find_kinks(shifted) == pytest.approx((np.pi,))
    for smooth in ("tanh", "elu", "gelu", "silu", "softplus", "sigmoid", "identity"):
        assert testing.find_kinks(activations.from_name(smooth)) == ()


@pytest.mark.parametrize("loss", losses.SHIPPED, ids=lambda loss: loss.name)
def test_shipped_losses_pass(loss):
    report = testing.check_loss(loss)
    assert report.ok, str(report)


def test_losses_of_a_user_s():
    quartic = Loss(
        "quartic", lambda out, y: ((out - y) ** 4).sum(-1), lambda out, y: 4 * (out - y) ** 3, lambda out: out
    )
    assert testing.check_loss(quartic, class_ids=False).ok
    assert not testing.check_loss(replace(quartic, delta=lambda out, y: 4.001 * (out - y) ** 3), class_ids=False).ok
    mixing = replace(quartic, fn=lambda out, y: ((out - y) ** 4).sum(-1) / len(out))
    assert "not one value per sample" in str(testing.check_loss(mixing, class_ids=False))
    bold = replace(
        losses.softmax_cross_entropy,
        fn=lambda out, y: losses.softmax_cross_entropy.fn(out, y if y.ndim > 1 else jnp.clip(y, 0, 4)),
    )
    assert [row.leaf for row in testing.check_loss(bold).rows if not row.ok] == ["ids out of range"]


def absolute_error(slope):
    def delta(out, y):
        return jnp.where(out == y, jnp.asarray(slope, out.dtype), jnp.sign(out - y))

    return Loss("absolute", lambda out, y: jnp.abs(out - y).sum(-1), delta, lambda out: out)


@pytest.mark.parametrize(("slope", "ok"), [*(
    pytest.param(slope, True, marks=pytest.mark.slow) for slope in (0, -1)), (1.2, False)])  # fmt: skip
def test_a_loss_at_its_kinks(slope, ok, call):
    """Slow: what is correct, since a loss of its own is compiled for each slope."""
    report = testing.check_loss(absolute_error(slope), class_ids=False)
    assert [row.leaf for row in report.rows if not row.ok] == ([] if ok else ["at ties, targets"])
    params, x = jax.tree.map(lambda a: np.round(4 * a) / 4, call[:2])  # exact, so that they tie in float64, too
    y = np.array(funcnet.forward(params, x))
    y[2:] += 1  # two samples at the kink
    report = testing.check_backward(params, x, y, Network(loss=absolute_error(slope)))
    assert report.ok == ok, str(report)


def test_trees_are_close_by_their_largest_entries():
    a = {"w": np.array([1.0, 1e-6], np.float32)}
    testing.assert_tree_close({"w": a["w"] + np.float32(1e-6)}, a)
    with pytest.raises(AssertionError, match=r"\['w'\] .* WRONG .*\n.*worst at \(0,\): 1\.00001\d*, expected 1"):
        testing.assert_tree_close({"w": a["w"] + np.float32(1e-5)}, a)
    with pytest.raises(AssertionError, match=r"float32 \(1,\), expected float32 \(2,\)"):
        testing.assert_tree_close({"w": a["w"][:1]}, a)
    with pytest.raises(AssertionError, match="the tree is"):
        testing.assert_tree_close([a["w"]], a)


@pytest.mark.slow
def test_one_cell_of_the_matrix():
    f, loss, _, cells = next(matrix())
    assert (f, loss) == ("identity", "softmax_cross_entropy")
    assert cells.keys() == COLUMNS.keys()
    assert all(error <= 16 for error in cells.values())


@pytest.mark.parametrize("n", [0, 1, pytest.param(128, marks=pytest.mark.slow)])  # 7 elsewhere
def test_batches_of_every_size(n):
    params = oracle.network(0, (4, 5, 3), np.float32)
    x, y = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32), np.arange(n) % 3
    if n == 0:
        with pytest.raises(ValueError, match="the batch is empty"):
            testing.check_backward(params, x, y)
    else:
        assert testing.check_backward(params, x, y, Network(activations.tanh)).ok


@pytest.mark.parametrize("bad", [-1, 3, 1000])
@pytest.mark.parametrize("loss", losses.SHIPPED, ids=lambda loss: loss.name)
def test_a_bad_label_makes_loss_and_gradient_nan_under_jit(call, loss, bad):
    params, x, y = call
    y = np.where(np.arange(7) == 3, bad, y)
    network = Network(activations.tanh, loss=loss)
    value, grads = jax.jit(funcnet.value_and_backward)(params, x, y, network)
    assert np.isnan(value)
    assert all(np.isnan(g).all() for g in jax.tree.leaves(grads))
    by_jax = jax.grad(funcnet.objective)(params, x, y, network)
    assert np.isnan(by_jax[-1][0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_in_the_targets_come_through(call, bad):
    params, x, _ = call
    y = np.full((7, 3), 0.5, np.float32)
    y[2, 1] = bad
    value, grads = funcnet.value_and_backward(params, x, y, Network(loss=funcnet.squared_error))
    assert not np.isfinite(value)
    assert not np.isfinite(grads[-1][1][1])


def test_what_is_no_activation_or_loss_is_named():
    with pytest.raises(ValueError, match=r"activation is .*, expected an Activation: a function alone has no deriv"):
        testing.check_activation(jnp.tanh)
    with pytest.raises(ValueError, match="loss is 'mse' of type str, expected a Loss"):
        testing.check_loss("mse")


def test_a_gradient_that_is_nan_is_wrong_and_python_s_numbers_are_judged_in_float64():
    def hidden(z):  # sin(z) / z; its jax.grad at 0 is NaN, though the slope is 0
        return jnp.sum(jnp.where(z == 0, 1.0, jnp.sin(z) / z))

    report = testing.check_gradients(hidden, jax.grad(hidden), (jnp.array([0.0, 1.0, 2.0]),))
    assert not report.ok
    assert "it is NaN" in str(report)

    @jax.custom_vjp
    def lie(z):
        return z * z

    lie.defvjp(lambda z: (z * z, z), lambda z, g: (3 * z * g,))
    assert not testing.check_gradients(lie, jax.grad(lie), (3.0,)).ok
    assert testing.check_gradients(lambda z: z * z, lambda z: 2 * z, (3.0,)).ok
