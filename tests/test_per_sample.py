"""Per-sample gradients, norms, clipping, moments and curvature: against `vmap(jax.grad)` and JAX's own curvature."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import per_sample_mnist
import pytest

import funcnet
from funcnet import Network, activations, curvature, losses, per_sample

SIZES = (6, 9, 8, 4)
BATCHES = [(1,), (7,), (128,), (), (3, 5)]
EVERY = [Network(act, loss=loss) for act, loss in itertools.product(activations.SHIPPED, losses.SHIPPED)]
SOME = [Network(act, loss=losses.SHIPPED[i % 3]) for i, act in enumerate(activations.SHIPPED)]  # each with one loss


def some_of(dtype):
    """Every other network, the others in the other dtype."""
    return SOME[::2] if dtype == "float32" else SOME[1::2]


every_loss = pytest.mark.parametrize("loss", losses.SHIPPED, ids=lambda loss: loss.name)


def rows_by_jax(args, arrays, network=Network()):
    """`jax.grad(objective)` of each sample alone: `vmap` over every leading axis of `x`."""
    params, x, y = args

    def gradient(x, y, masks):
        return jax.grad(funcnet.objective)(params, x, y, network, masks=masks)

    for _ in x.shape[:-1]:
        gradient = jax.vmap(gradient)
    return gradient(x, y, arrays.get("masks"))


def as_rows(grads, batch):
    """Leaves `(..., *shape)` as float64 `(N, *shape)`."""
    return [np.asarray(g, np.float64).reshape(-1, *g.shape[len(batch) :]) for g in jax.tree.leaves(grads)]


def norms_of(rows):
    return np.sqrt(sum((g**2).reshape(len(g), -1).sum(1) for g in rows))


def mean_of(rows, w):
    return [np.tensordot(w / w.sum(), g, 1) for g in rows]


def clipped(rows, max_norm):
    norms = norms_of(rows)
    factor = np.minimum(1, max_norm / np.where(norms > 0, norms, 1))
    return [g * factor.reshape(-1, *[1] * (g.ndim - 1)) for g in rows]


def with_everything(leading, dtype, sizes=SIZES):
    """A case with weights, masks and class ids."""
    return oracle.make_case(0, sizes, leading, dtype, weighted=True, masked=True)


def soft(leading, dtype, sizes=SIZES):
    """A case with soft labels alone."""
    return oracle.make_case(1, sizes, leading, dtype, weighted=False, masked=False, soft=True)


def in_one_program(function, calls):
    """`function(network, args, arrays)` of each `(network, case)`, compiled as one program."""
    networks, cases = zip(*calls, strict=True)
    program = jax.jit(lambda cases: [function(n, *case) for n, case in zip(networks, cases, strict=True)])
    return zip(networks, cases, program(cases), strict=True)


def check_everything(calls, dtype):
    """Rows, norms, clipped sums, moments against rows that JAX has made; in eps of the largest entry of a leaf."""

    def everything(network, args, arrays):
        call = (*args, network)
        masks = {name: a for name, a in arrays.items() if name == "masks"}
        norms = per_sample.per_sample_norms(*call, **masks)
        max_norm = jnp.median(norms) * (0.5 if norms.size == 1 else 1.0)
        return (
            rows_by_jax(args, arrays, network),
            per_sample.per_sample_backward(*call, **masks),
            norms,
            per_sample.per_sample_norms(*call, **masks, per_leaf=True),
            max_norm,
            per_sample.clipped_backward(*call, max_norm=max_norm, **arrays),
            per_sample.gradient_moments(*call, **arrays),
        )  # fmt: skip

    for network, (args, arrays), result in in_one_program(everything, calls):
        by_jax, by_hand, norms, per_leaf, max_norm, clipped_mean, (mean, variance) = result
        batch = args[1].shape[:-1]
        assert jax.tree.structure(by_hand) == jax.tree.structure(args[0])
        assert max(oracle.errors_in_eps(by_hand, by_jax)) <= 64, network

        rows = as_rows(by_jax, batch)
        assert (norms.shape, norms.dtype) == (batch, dtype)
        # 9 eps were seen on one kind of processor: the deltas of a layer are rounded, as those of the rows are.
        np.testing.assert_allclose(np.ravel(norms), norms_of(rows), rtol=16 * np.finfo(dtype).eps)
        for got, row in zip(jax.tree.leaves(per_leaf), rows, strict=True):
            np.testing.assert_allclose(np.ravel(got), norms_of([row]), rtol=32 * np.finfo(dtype).eps)

        w = np.ravel(arrays.get("sample_weight", np.ones(batch)))
        want = mean_of(clipped(rows, float(max_norm)), w)
        # Of 128 samples, deltas of 0.3 cancel in db to a mean of 0.006, so that its rounding is up to 21 eps of that.
        assert max(oracle.errors_in_eps(jax.tree.leaves(clipped_mean), want)) <= 32, network

        exact, squares = mean_of(rows, w), mean_of([g**2 for g in rows], w)
        assert max(oracle.errors_in_eps(jax.tree.leaves(mean), exact)) <= 32, network
        for got, square, m in zip(jax.tree.leaves(variance), squares, exact, strict=True):
            assert got.min() >= 0
            assert np.abs(got - (square - m**2)).max() <= 64 * np.finfo(dtype).eps * square.max(), network


def test_equals_vmap_of_jax_grad(dtype):
    """Each activation with one of the losses, in one of the dtypes; weights, masks and class ids or soft labels."""
    kinds = with_everything((7,), dtype), soft((7,), dtype)
    check_everything([(network, kinds[i % 2]) for i, network in enumerate(some_of(dtype))], dtype)


@pytest.mark.slow
@every_loss
def test_equals_vmap_of_jax_grad_everywhere(loss, dtype):
    """Half of the kinds of labels in each dtype."""
    kinds = with_everything((7,), dtype), soft((7,), dtype)
    calls = [(network, kinds[(i + (dtype == "float64")) % 2]) for i, network in enumerate(EVERY)]
    check_everything([call for call in calls if call[0].loss == loss], dtype)


QUICK_BATCHES = {  # half of them in each dtype
    "float32": [(soft, ()), (with_everything, (128,))],  # more samples than rows of W
    "float64": [(with_everything, (1,)), (soft, (3, 5))],
}
QUICK_DEPTHS = {"float32": [(with_everything, 1)], "float64": [(with_everything, 2)]}


def check_batches_and_depths(batches, depths, dtype):
    check_everything([(Network(activations.tanh), kind(batch, dtype)) for kind, batch in batches], dtype)
    check_everything([(Network(), kind((7,), dtype, oracle.sizes_of(depth))) for kind, depth in depths], dtype)


def test_equals_vmap_of_jax_grad_for_every_batch_and_depth(dtype):
    check_batches_and_depths(QUICK_BATCHES[dtype], QUICK_DEPTHS[dtype], dtype)


@pytest.mark.slow
def test_equals_vmap_of_jax_grad_for_every_other_batch_and_depth(dtype):
    """What the quick test has not; of 32 layers one kind in each dtype."""
    kinds = with_everything, soft
    batches = [(kind, batch) for kind in kinds for batch in BATCHES if (kind, batch) not in QUICK_BATCHES[dtype]]
    depths = [(kind, depth) for kind in kinds for depth in (1, 2) if (kind, depth) not in QUICK_DEPTHS[dtype]]
    check_batches_and_depths(batches, [*depths, (kinds[dtype == "float64"], 32)], dtype)


def test_the_input_gradient(dtype):
    def both(network, args, arrays):
        return (
            per_sample.input_backward(*args, network, **arrays),
            jax.grad(funcnet.objective, 1)(*args, network, **arrays),
        )

    some = [with_everything((7,), dtype), soft((3, 5), dtype), with_everything((), dtype)]
    calls = [(network, some[i % 3]) for i, network in enumerate(some_of(dtype))]
    for network, (args, _), (by_hand, by_jax) in in_one_program(both, calls):
        assert (by_hand.shape, by_hand.dtype) == (args[1].shape, args[1].dtype)
        assert max(oracle.errors_in_eps([by_hand], [by_jax])) <= 32, network


def test_the_input_gradient_has_the_dtype_of_the_input():
    (params, x, y), _ = oracle.make_case(0, SIZES, (7,), np.float32, weighted=False, masked=False)
    assert per_sample.input_backward(params, x.astype(np.float16), y).dtype == np.float16


def test_a_gradient_of_zero_is_clipped_to_zero():
    params = [(jnp.zeros((4, 3)), jnp.zeros(3))]
    x = jnp.ones((2, 4))
    y = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    network = Network(loss=funcnet.squared_error)
    np.testing.assert_array_equal(per_sample.per_sample_norms(params, x, y, network)[0], 0)
    for max_norm in (1.0, 0.0):
        grads = per_sample.clipped_backward(params, x[:1], y[:1], network, max_norm=max_norm)
        assert all(np.array_equal(g, np.zeros_like(g)) for g in jax.tree.leaves(grads))
    both = per_sample.clipped_backward(params, x, y, network, max_norm=1.0)
    assert np.isclose(np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(both))), 0.5)

    def total(x):  # differentiable there, too: no 0 times infinity
        grads = per_sample.clipped_backward(params, x, y, network, max_norm=1.0)
        return sum(jnp.sum(g) for g in jax.tree.leaves(grads))

    assert np.isfinite(jax.grad(total)(x)).all()


def test_max_norm_at_its_ends():
    (params, x, y), _ = oracle.make_case(0, SIZES, (7,), np.float32, weighted=False, masked=False)
    plain = funcnet.backward(params, x, y)
    for max_norm in (jnp.inf, 1e6):
        grads = per_sample.clipped_backward(params, x, y, max_norm=max_norm)
        assert max(oracle.errors_in_eps(grads, plain)) <= 16
    assert not any(g.any() for g in jax.tree.leaves(per_sample.clipped_backward(params, x, y, max_norm=0)))
    for max_norm in (-1.0, jnp.nan):
        grads = per_sample.clipped_backward(params, x, y, max_norm=max_norm)
        assert all(np.isnan(g).all() for g in jax.tree.leaves(grads))


def test_no_sample_counts_for_more_than_max_norm(x64):
    """What privacy rests on: taking one sample away moves the sum by `max_norm` at most."""
    (params, x, y), _ = oracle.make_case(0, SIZES, (32,), np.float64, weighted=False, masked=False)
    private_sum = partial(per_sample.private_sum, jax.random.key(0), params, max_norm=0.3, noise_multiplier=0.0)
    included = ~np.eye(33, 32, dtype=bool)  # all but one, and all
    sums = jax.jit(jax.vmap(lambda included: private_sum(x, y, included=included)))(included)
    without, with_all = ([np.asarray(leaf)[rows] for leaf in jax.tree.leaves(sums)] for rows in (slice(32), 32))
    mean = per_sample.clipped_backward(params, x, y, max_norm=0.3)
    assert max(oracle.errors_in_eps([g / 32 for g in with_all], jax.tree.leaves(mean))) <= 16
    rest = jax.jit(jax.vmap(private_sum))(*(np.stack([a[row] for row in included[:32]]) for a in (x, y)))
    assert max(oracle.errors_in_eps(without, jax.tree.leaves(rest))) <= 16
    moves = norms_of([g - whole for g, whole in zip(without, with_all, strict=True)])
    assert max(moves) <= 0.3 * (1 + 1e-12)
    assert max(moves) > 0.299


@pytest.mark.parametrize("bad", ["label", "nan", "inf", "huge"])
def test_a_bad_sample_does_not_leave_the_bound(bad):
    (params, x, y), _ = oracle.make_case(0, SIZES, (8,), np.float32, weighted=False, masked=False)
    settings = {"max_norm": 0.3, "noise_multiplier": 0.0}
    key, included = jax.random.key(0), np.arange(8) != 3
    rest = per_sample.private_sum(key, params, x, y, included=included, **settings)
    if bad == "label":
        y[3] = -1
    else:
        x[3] = {"nan": np.nan, "inf": np.inf, "huge": 1e30}[bad]
    without = per_sample.private_sum(key, params, x, y, included=included, **settings)
    assert max(oracle.errors_in_eps(without, rest)) == 0
    with_it = per_sample.private_sum(key, params, x, y, **settings)
    moved = [np.asarray(a - b, np.float64) for a, b in zip(*map(jax.tree.leaves, (with_it, rest)), strict=True)]
    assert np.sqrt(sum((d**2).sum() for d in moved)) <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize(("x", "delta"), [(1e30, 1e-23), (1.5e19, 1e-19), (1e10, 5e-21), (1e-30, 1e-5)])
def test_norms_where_a_square_has_no_number(x, delta):
    params = [(jnp.zeros((1, 4)), jnp.zeros(4))]
    x, y = jnp.full((1, 1), x, jnp.float32), jnp.full((1, 4), -delta / 2, jnp.float32)
    network = Network(loss=funcnet.squared_error)  # delta_L = 2 (0 - y)
    norm = float(np.float64(delta) * 2 * np.hypot(np.float64(x[0, 0]), 1))
    np.testing.assert_allclose(per_sample.per_sample_norms(params, x, y, network), [norm], rtol=1e-6)
    clipped = per_sample.clipped_backward(params, x, y, network, max_norm=norm / 4)
    size = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(clipped)))
    np.testing.assert_allclose(size, norm / 4, rtol=1e-6)


GROUPS = np.array([7, -3, 7, 7, 10**6, -3, 2])  # names, in no order; the last group has no weight in some cases


def clipped_by_group(rows, groups, w, max_norm):
    """The mean over groups of their clipped gradients, and the norms of all rows' groups: a loop in NumPy."""
    total, norms, counted = [np.zeros(g.shape[1:]) for g in rows], np.zeros(len(w)), []
    for group in np.unique(groups):
        chosen = groups == group
        if not w[chosen].any():
            continue
        mean = mean_of([g[chosen] for g in rows], w[chosen])
        norms[chosen] = np.sqrt(sum((g**2).sum() for g in mean))
        counted.append(norms[chosen][0])
        for t, g in zip(total, mean, strict=True):
            t += w[chosen].sum() / w.sum() * g * min(1, max_norm / norms[chosen][0])
    return total, norms, int((np.array(counted) > max_norm).sum()), len(counted)


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("real", "float64"),
        pytest.param("none", "float32", marks=pytest.mark.slow),
        pytest.param("whole", "float32", marks=pytest.mark.slow),
    ],
    indirect=["dtype"],
)
def test_clipping_says_what_it_clipped_each_or_by_group(weights, dtype):
    args, arrays = with_everything((7,), dtype)
    whole = np.array([1, 2, 3, 0, 5, 0, 0])  # the last group has no weight, another one less
    w = {"none": np.ones(7), "real": arrays["sample_weight"], "whole": whole}[weights]
    masks = {"masks": arrays["masks"]}
    arrays = masks if weights == "none" else masks | {"sample_weight": w}
    network, w = Network(activations.tanh), np.asarray(w, np.float64)
    rows = as_rows(jax.jit(rows_by_jax)(args, arrays, network), (7,))
    losses = [
        funcnet.objective(args[0], args[1][i], args[2][i], network, masks=[m[i] for m in masks["masks"]])
        for i in (0, 5)
    ]
    for groups in (None, GROUPS):
        ids = np.arange(7) if groups is None else groups
        middle = np.median(clipped_by_group(rows, ids, w, 1.0)[1]) * 0.9
        want, norms, clipped, counted = clipped_by_group(rows, ids, w, middle)
        given = {"max_norm": middle, "groups": groups} | arrays
        got = per_sample.clipped_value_and_backward(*args, network, **given)
        eps = np.finfo(dtype).eps
        assert max(oracle.errors_in_eps(jax.tree.leaves(got.grads), want)) <= 32
        counts = w != 0 if groups is None else norms != 0
        np.testing.assert_allclose(np.asarray(got.norms)[counts], norms[counts], rtol=64 * eps)
        np.testing.assert_allclose(np.asarray(got.losses)[[0, 5]], losses, rtol=16 * eps)
        assert (int(got.clipped), int(got.counted)) == (clipped, counted)
        assert clipped > 0
    plain = per_sample.clipped_backward(*args, network, **given)
    assert max(oracle.errors_in_eps(plain, got.grads)) <= 4
    unlimited = per_sample.clipped_backward(*args, network, **(given | {"max_norm": np.inf}))
    assert max(oracle.errors_in_eps(unlimited, funcnet.backward(*args, network, **arrays))) <= 16


def test_groups_of_one_size_are_vmap_over_groups():
    (params, x, y), _ = oracle.make_case(0, SIZES, (5, 4), np.float32, weighted=False, masked=False)
    rows = as_rows(jax.vmap(jax.grad(funcnet.objective), (None, 0, 0))(params, x, y), (5,))
    max_norm = float(np.median(norms_of(rows)))
    want = mean_of(clipped(rows, max_norm), np.ones(5))
    groups = np.broadcast_to(np.arange(5)[:, None], (5, 4))
    for shape in ((5, 4), (20,)):
        call = params, x.reshape(*shape, -1), y.reshape(shape)
        got = per_sample.clipped_backward(*call, max_norm=max_norm, groups=groups.reshape(shape))
        assert max(oracle.errors_in_eps(jax.tree.leaves(got), want)) <= 16
    fn = partial(per_sample.clipped_value_and_backward, params, max_norm=max_norm)
    many = jax.jit(jax.vmap(lambda x, y, groups: fn(x, y, groups=groups)))(x, y, groups)
    one = fn(x[2], y[2], groups=groups[2])
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[2], b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_of_groups_where_a_square_has_no_number(scale):
    """Two groups, one 1e25 times the other, and one whose gradients cancel."""
    params, network = [(jnp.zeros((1, 2)), jnp.zeros(2))], Network(loss=funcnet.squared_error)
    x = jnp.ones((6, 1))
    y = jnp.array([1, 2, scale, 2 * scale, 1, -1], jnp.float32)[:, None] * jnp.array([[0.5, 0.0]])
    found = per_sample.clipped_value_and_backward(
        params, x, y, network, max_norm=scale / 2, groups=jnp.array([0, 0, 1, 1, 2, 2])
    )
    np.testing.assert_allclose(
        found.norms, np.sqrt(2) * np.array([1.5, 1.5, 1.5 * scale, 1.5 * scale, 0, 0]), rtol=1e-6
    )
    bad = per_sample.clipped_value_and_backward(
        params, x.at[0].set(np.nan), y, network, max_norm=1.0, groups=[0, 0, 1, 1, 2, 2]
    )
    np.testing.assert_array_equal(np.isnan(bad.norms), [True, True, False, False, False, False])
    assert np.isnan(bad.grads[0][0]).all()
    assert int(bad.clipped) == 1 + (scale > 1)  # what is no number is not within


def test_groups_and_keys_that_are_none_are_named():
    (params, x, y), _ = oracle.make_case(0, SIZES, (4,), np.float32, weighted=False, masked=False)
    for groups in (np.zeros(3, int), np.zeros(4), np.zeros((4, 1), int)):
        with pytest.raises(ValueError, match=r"groups has dtype .*, expected integers and \(4,\), the group of each"):
            per_sample.clipped_backward(params, x, y, max_norm=1.0, groups=groups)
    with pytest.raises(ValueError, match=r"groups holds 4294967296, which JAX would cut to 32 bits"):
        per_sample.clipped_backward(params, x, y, max_norm=1.0, groups=np.array([0, 1, 2, 2**32]))
    call = {"max_norm": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match=r"key is .*, expected a JAX random key"):
        per_sample.private_sum(0, params, x, y, **call)
    for key in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert np.isfinite(per_sample.private_sum(key, params, x, y, **call)[0][0]).all()


def test_weights_whose_sum_is_zero_give_nan():
    (params, x, y), _ = oracle.make_case(0, SIZES, (4,), np.float32, weighted=False, masked=False)
    given = {"sample_weight": np.zeros(4, np.float32)}
    results = [
        per_sample.clipped_backward(params, x, y, max_norm=1.0, **given),
        per_sample.input_backward(params, x, y, **given),
        per_sample.gradient_moments(params, x, y, **given).mean,
        per_sample.gradient_noise_scale(params, x, y, **given),
    ]
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(results))


def test_max_norm_and_noise_multiplier_are_numbers():
    (params, x, y), _ = oracle.make_case(0, SIZES, (2,), np.float32, weighted=False, masked=False)
    with pytest.raises(ValueError, match=r"max_norm is an array of shape \(2,\), expected a number"):
        per_sample.clipped_backward(params, x, y, max_norm=jnp.ones(2))
    with pytest.raises(ValueError, match=r"noise_multiplier is an array of shape \(2,\), expected a number"):
        per_sample.private_sum(jax.random.key(0), params, x, y, max_norm=1.0, noise_multiplier=jnp.ones(2))


def test_the_noise_has_the_stated_size():
    (params, x, y), _ = oracle.make_case(0, (60, 50, 40), (7,), np.float32, weighted=False, masked=False)
    noiseless = per_sample.private_sum(jax.random.key(0), params, x, y, max_norm=0.5, noise_multiplier=0.0)
    draws = [
        per_sample.private_sum(jax.random.key(seed), params, x, y, max_norm=0.5, noise_multiplier=3.0)
        for seed in (0, 0, 1)
    ]
    noise = [
        np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (draw, noiseless)), strict=True)])
        for draw in draws
    ]
    np.testing.assert_array_equal(noise[0], noise[1])
    n = noise[0].size  # 5,090
    for z in (noise[0] / 1.5, noise[2] / 1.5):
        assert abs(z.mean()) < 4 / np.sqrt(n)
        assert abs(z.std() - 1) < 4 / np.sqrt(2 * n)
    assert abs(np.corrcoef(noise[0], noise[2])[0, 1]) < 4 / np.sqrt(n)
    leaves = [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (draws[0], noiseless)), strict=True)]
    assert not np.allclose(leaves[1], leaves[2][:50])  # a key for each leaf


def test_no_sample_at_all_is_noise_alone():
    (params, x, y), _ = oracle.make_case(0, SIZES, (7,), np.float32, weighted=False, masked=False)
    grads = per_sample.private_sum(
        jax.random.key(0), params, x, y, max_norm=1.0, noise_multiplier=0.0, included=jnp.zeros(7, bool)
    )
    assert not any(g.any() for g in jax.tree.leaves(grads))
    with pytest.raises(ValueError, match=r"included has dtype int32 and shape \(7,\), expected bool and \(7,\)"):
        per_sample.private_sum(
            jax.random.key(0), params, x, y, max_norm=1.0, noise_multiplier=0.0, included=jnp.ones(7, jnp.int32)
        )


def test_the_noise_scale_is_unbiased(x64):
    """Over all batches of 3 out of 8 samples, the two estimates have the population's values as their means."""
    (params, x, y), _ = oracle.make_case(0, (3, 4, 2), (8,), np.float64, weighted=False, masked=False)
    by_jax = jax.jit(rows_by_jax)((params, x, y), {})
    rows = np.concatenate([g.reshape(8, -1) for g in as_rows(by_jax, (8,))], 1)
    batches = [np.array(chosen) for chosen in itertools.product(range(8), repeat=3)]  # drawn with replacement

    def noise_scale(chosen):
        return per_sample.gradient_noise_scale(params, jnp.asarray(x)[chosen], jnp.asarray(y)[chosen])

    scale = jax.vmap(noise_scale)(jnp.array(batches))
    np.testing.assert_allclose(scale.trace.mean(), rows.var(0).sum(), rtol=1e-10)
    np.testing.assert_allclose(scale.squared_norm.mean(), (rows.mean(0) ** 2).sum(), rtol=1e-10)
    np.testing.assert_allclose(scale.ratio, scale.trace / scale.squared_norm, rtol=1e-12)
    w = np.where(np.arange(8) < 5, 1.0, 0.0)  # weight 0 leaves a sample out, of N too
    padded = per_sample.gradient_noise_scale(params, x, y, sample_weight=w)
    np.testing.assert_allclose(padded, per_sample.gradient_noise_scale(params, x[:5], y[:5]), rtol=1e-10)
    for seed in range(8):  # one sample has no variance
        (params, x, y), _ = oracle.make_case(seed, SIZES, (3,), np.float32, weighted=False, masked=False)
        assert np.isnan(per_sample.gradient_noise_scale(params, x[:1], y[:1]).trace)
        for alone in ([0.3, 0, 0], [1, 3e-7, 0]):  # the second to rounding
            w = np.float32(alone)
            assert np.isnan(per_sample.gradient_noise_scale(params, x, y, sample_weight=w).ratio)


def gauss_newton_by_jax(params, v, x, y, network, *, masks=None, sample_weight=None):
    """`J^T H J v` from `jax.jvp` of the network, `jax.jvp` of `jax.grad` of the loss, and `jax.vjp` of the network."""

    def out_of(params):
        return funcnet.forward(params, x, network, masks=masks)

    def total(out):
        values = network.loss.fn(out, y)
        w = jnp.ones_like(values) if sample_weight is None else sample_weight
        return jnp.sum(w * values) / jnp.sum(w)

    out, moved = jax.jvp(out_of, (params,), (v,))
    _, curved = jax.jvp(jax.grad(total), (out,), (moved,))
    return jax.vjp(out_of, params)[1](curved)[0]


def test_the_gauss_newton_product(dtype):
    v = oracle.network(9, SIZES, dtype)

    def both(network, args, arrays):
        call = (args[0], v, *args[1:], network)
        return curvature.gauss_newton_product(*call, **arrays), gauss_newton_by_jax(*call, **arrays)

    some = with_everything((7,), dtype), soft((3, 5), dtype)
    calls = [(network, some[i % 2]) for i, network in enumerate(some_of(dtype))]
    for network, _, (by_hand, by_jax) in in_one_program(both, calls):
        assert max(oracle.errors_in_eps(by_hand, by_jax)) <= 64, network


def by_hand_and_by_the_hessian(v):
    """Gauss-Newton's product and the Hessian's own, for calls of which they are the same."""

    def both(network, args, arrays):
        params, x, y = args
        gradient = jax.grad(partial(funcnet.objective, **arrays))
        _, hessian = jax.jvp(lambda params: gradient(params, x, y, network), (params,), (v,))
        return curvature.gauss_newton_product(params, v, x, y, network, **arrays), hessian

    return both


def test_the_gauss_newton_product_is_the_hessian_of_one_layer(dtype):
    case = with_everything((7,), dtype, (6, 4))
    calls = [(Network(loss=loss), case) for loss in losses.SHIPPED]
    both = by_hand_and_by_the_hessian(oracle.network(9, (6, 4), dtype))
    for network, _, (by_hand, hessian) in in_one_program(both, calls):
        assert max(oracle.errors_in_eps(by_hand, hessian)) <= 32, network


def test_the_gauss_newton_product_is_the_hessian_where_the_fit_is_perfect(x64):
    (params, x, _), _ = soft((7,), np.float64)
    outputs = activations.identity, activations.sigmoid
    networks = [Network(act, outputs[i % 2], losses.squared_error) for i, act in enumerate(activations.SHIPPED)]
    fitted = jax.jit(lambda: [funcnet.forward(params, x, network) for network in networks])()
    calls = [(network, ((params, x, y), {})) for network, y in zip(networks, fitted, strict=True)]
    for network, _, (by_hand, hessian) in in_one_program(by_hand_and_by_the_hessian(oracle.network(9, SIZES)), calls):
        assert max(oracle.errors_in_eps(by_hand, hessian)) <= 64, network


def test_the_gauss_newton_product_names_a_direction_that_does_not_fit():
    (params, x, y), _ = oracle.make_case(0, (6, 4), (7,), np.float32, weighted=False, masked=False)
    with pytest.raises(ValueError, match=r"direction is \[\(\(6, 5\), 'float32'\).*expected \[\(\(6, 4\), 'float32'\)"):
        curvature.gauss_newton_product(params, oracle.network(0, (6, 5), np.float32), x, y)
    with pytest.raises(ValueError, match=r"direction is .* in PyTreeDef\(\[\[\*, \*\]\]\), expected .*\[\(\*, \*\)\]"):
        curvature.gauss_newton_product(params, [list(layer) for layer in params], x, y)


def test_the_kronecker_factors(dtype):
    for args, arrays in (with_everything((7,), dtype), soft((7,), dtype)):
        w, masks = arrays.get("sample_weight", np.ones(7)), arrays.get("masks", [None] * 3)
        network = Network(activations.tanh)
        factors = curvature.kronecker_factors(*args, network, **arrays)
        trace = funcnet.forward_trace(*args[:2], network, masks=arrays.get("masks"))
        rows = jax.jit(rows_by_jax)(args, arrays, network)
        for (A, G), a, mask, (_, db) in zip(factors, trace.activations[:-1], masks, rows, strict=True):
            inputs = np.asarray(a if mask is None else a * mask, np.float64)
            for got, v in ((A, inputs), (G, np.asarray(db, np.float64))):  # db[n] is delta
                want = np.einsum("n,ni,nj->ij", w / w.sum(), v, v)
                assert max(oracle.errors_in_eps([got], [want])) <= 16
                np.testing.assert_array_equal(got, got.T)


FUNCTIONS = {
    "rows": per_sample.per_sample_backward,
    "norms": per_sample.per_sample_norms,
    "clipped": partial(per_sample.clipped_backward, max_norm=0.5),
    "private": lambda *args, **settings: per_sample.private_sum(
        jax.random.key(0), *args, max_norm=0.5, noise_multiplier=1.0, **settings
    ),
    "input": per_sample.input_backward,
    "moments": per_sample.gradient_moments,
    "noise scale": per_sample.gradient_noise_scale,
    "gauss-newton": lambda params, *args, **settings: curvature.gauss_newton_product(params, params, *args, **settings),
    "kronecker": curvature.kronecker_factors,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@jax.jit  # one program for all
def everything(params, x, y, network=Network(), **arrays):
    return {name: function(params, x, y, network, **arrays) for name, function in FUNCTIONS.items()}


def worst_of_each(got, want):
    assert got.keys() == want.keys() == FUNCTIONS.keys()
    return {name: max(oracle.errors_in_eps(got[name], want[name])) for name in FUNCTIONS}


def test_all_compose_with_jit_vmap_scan_and_grad():
    (params, x, y), _ = oracle.make_case(0, (6, 9, 4), (5, 4), np.float32, weighted=False, masked=False)
    fn = partial(everything, network=Network(activations.silu))
    x, y = jnp.asarray(x), jnp.asarray(y)
    loop = [fn(params, x[i], y[i]) for i in range(5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)

    @jax.jit
    def transformed(params, x, y):
        vmapped = jax.vmap(fn, (None, 0, 0))(params, x, y)
        scanned = jax.lax.scan(lambda carry, xy: (carry, fn(params, *xy)), 0, (x, y))[1]
        total = lambda params: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(fn(params, x[0], y[0])))  # noqa: E731
        return vmapped, scanned, jax.grad(total)(params)

    vmapped, scanned, slopes = transformed(params, x, y)
    for got in (vmapped, scanned):
        errors = worst_of_each(got, stacked)
        assert max(errors.values()) <= 64, errors
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))  # of each: NaN and infinity stay in a sum


@pytest.mark.parametrize("axis_type", [pytest.param("Auto", marks=pytest.mark.slow), "Explicit"])
def test_a_batch_sharded_over_devices(axis_type):
    (params, x, y), arrays = oracle.make_case(0, (6, 8, 4), (8,), np.float32, weighted=False, masked=True)
    whole = everything(params, x, y, **arrays)
    cpus = jax.devices("cpu")[:4]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType[axis_type],), devices=cpus)

    def put(a, *spec):
        return jax.device_put(a, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))

    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
        batch = put((x, y, arrays), "data")
        sharded = everything(put(params), batch[0], batch[1], **batch[2])
    errors = worst_of_each(sharded, whole)
    assert max(errors.values()) <= 32, errors


@every_function
def test_is_traced_once(name):
    (params, x, y), _ = oracle.make_case(0, SIZES, (4,), np.float32, weighted=False, masked=False)
    traces = []
    act = activations.Activation("counted", lambda z: traces.append(0) or jnp.tanh(z), activations.tanh.deriv)
    for scale in (1, 2):
        jax.eval_shape(FUNCTIONS[name], params, scale * x, y, Network(act))
    assert len(traces) == 2  # one trace, two hidden layers


@every_function
def test_bad_input_is_named(name):
    (params, x, y), _ = oracle.make_case(0, SIZES, (4,), np.float32, weighted=False, masked=False)
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\), expected \(..., 6\)"):
        FUNCTIONS[name](params, x[:, :5], y)
    with pytest.raises(ValueError, match=r"y has dtype int32.*expected \(4,\)"):
        FUNCTIONS[name](params, x, y[:3])


def test_half_precision():
    """Parameters of a half-precision dtype: computed in float32, each gradient in the dtype of its parameter."""
    (params, x, y), _ = oracle.make_case(0, (6, 9, 4), (32,), np.float32, weighted=False, masked=False)
    half = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)
    network = Network(activations.tanh)
    got = everything(half, x, y, network)
    want = everything(jax.tree.map(lambda p: p.astype(jnp.float32), half), x, y, network)
    for name in FUNCTIONS:
        like_params = name in {"rows", "clipped", "private", "moments", "gauss-newton"}
        for g, w in zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True):
            assert g.dtype == (jnp.bfloat16 if like_params else np.float32), name
            np.testing.assert_allclose(
                np.asarray(g, np.float32), w, rtol=1e-2, atol=1e-2 * np.abs(w).max(), err_msg=name
            )


def test_compute_dtype():
    (params, x, y), _ = oracle.make_case(0, (6, 9, 4), (32,), np.float32, weighted=False, masked=False)
    exact = everything(params, x, y, Network(activations.tanh))
    fast = everything(params, x, y, Network(activations.tanh, compute_dtype="bfloat16"))
    for name in FUNCTIONS:
        for g, w in zip(jax.tree.leaves(fast[name]), jax.tree.leaves(exact[name]), strict=True):
            assert g.dtype == w.dtype, name
            assert 0 < np.linalg.norm(g - w) <= 0.03 * np.linalg.norm(w), name


@pytest.mark.mnist
@pytest.mark.slow
def test_the_script_on_mnist(mnist, optimized, tmp_path, capsys):
    """Slow: it trains on all of MNIST; test_tutorials has it on digits."""
    per_sample_mnist.adversarial(epochs=1, seeds=1, out=tmp_path / "adversarial.png")
    per_sample_mnist.hardest(epochs=1, seeds=1, out=tmp_path / "hardest.png")
    per_sample_mnist.private(epochs=1, seeds=1, validation=1000)
    printed = capsys.readouterr().out
    before, after = (float(re.search(rf"{name} +([\d.]+)%", printed)[1]) for name in ("before", "after FGSM"))
    assert after < before / 2
    assert float(re.search(r"largest loss: ([\d.]+)%", printed)[1]) > 50  # by chance it would be 1
    assert float(re.search(r"validation accuracy ([\d.]+)%", printed)[1]) > 70
    assert {path.name for path in tmp_path.iterdir()} == {"adversarial.png", "hardest.png"}
