"""An epoch against the same epoch as a Python loop over NumPy batches, and under every transformation."""

import collections
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import oracle
import pytest

import funcnet
from funcnet import Network, activations, evaluation, training
from funcnet.optimizers import adam, averaged, sgd
from funcnet.regularizers import dropout_masks


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (23, 6)).astype(np.uint8), rng.integers(0, 4, 23).astype(np.int32)


def fresh_state(optimizer):
    return training.init_state(oracle.network(0, (6, 9, 4), np.float32), optimizer)


def test_shuffle_is_a_permutation_and_every_one_is_as_likely():
    shuffle = jax.jit(training.shuffle, static_argnums=1)
    for n in (1, 2, 3, 1000, 70_000):
        np.testing.assert_array_equal(np.sort(shuffle(jax.random.key(n), n)), range(n))
    orders = np.asarray(
        jax.jit(jax.vmap(lambda key: training.shuffle(key, 4)))(jax.random.split(jax.random.key(0), 24_000))
    )
    counts = collections.Counter(map(tuple, orders.tolist()))
    assert len(counts) == 24
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 49.7  # chi^2, 23 degrees, p = 0.001
    assert abs(np.corrcoef(shuffle(jax.random.key(0), 70_000), np.arange(70_000))[0, 1]) < 0.02


@pytest.mark.parametrize(("n", "size"), [(23, 5), (20, 5), (3, 8), (1, 1), (7, 7)])
def test_every_sample_is_in_an_epoch_once(n, size):
    batches = training.plan_batches(jax.random.key(0), n, size)
    steps = -(-n // size)
    assert batches.indices.shape == (steps, size)
    weights = np.ones((steps, size)) if batches.weights is None else np.asarray(batches.weights)
    assert (batches.weights is None) == (n % size == 0)
    assert sorted(np.asarray(batches.indices)[weights > 0].tolist()) == list(range(n))


@pytest.mark.parametrize("size", [5, 23, 64])
def test_an_epoch_is_the_textbook_s_loop(data, size):
    """Against plain NumPy SGD in float64, with gradients from the complex step."""
    x, y = data
    key = jax.random.key(3)
    state, metrics = jax.jit(training.make_epoch(sgd(0.5), batch_size=size))(fresh_state(sgd(0.5)), key, x, y)

    batches = training.plan_batches(key, len(x), size)
    params, total, correct = oracle.network(0, (6, 9, 4)), 0.0, 0
    for i, row in enumerate(np.asarray(batches.indices)):
        rows = row[: len(x) - i * size]  # the ragged last batch, not filled up
        xb, yb = x[rows] / 255.0, y[rows]
        total += len(rows) * oracle.objective(params, xb, yb, "relu", "softmax_cross_entropy")
        correct += (oracle.forward(params, xb, "relu").argmax(1) == yb).sum()
        grads = oracle.gradient(params, xb, yb, "relu", "softmax_cross_entropy")
        params = [(W - 0.5 * dW, b - 0.5 * db) for (W, b), (dW, db) in zip(params, grads, strict=True)]
    assert max(oracle.errors_in_eps(state.params, params)) <= 64
    assert metrics.loss == pytest.approx(total / len(x), rel=1e-5)
    assert metrics.accuracy == pytest.approx(correct / len(x))
    assert int(state.step) == len(batches.indices)


def test_jax_grad_trains_the_same(data):
    ends = []
    for gradient in (funcnet.value_and_backward, jax.value_and_grad(funcnet.objective)):
        epoch = jax.jit(training.make_epoch(adam(1e-2), batch_size=5, value_and_gradient=gradient))
        ends.append(epoch(fresh_state(adam(1e-2)), jax.random.key(0), *data)[0].params)
    assert max(oracle.errors_in_eps(*ends)) <= 256


def test_one_trace_for_a_whole_run_with_donation(data):
    traces = []

    def transform(key, x):
        traces.append(x.shape)
        return evaluation.scale_pixels(key, x)

    epoch = jax.jit(training.make_epoch(sgd(0.1), batch_size=5, transform=transform), donate_argnums=0)
    state = jax.tree.map(jnp.array, fresh_state(sgd(0.1)))
    donated = state.params[0][0]
    for i in range(3):
        state, _ = epoch(state, jax.random.key(i), *data)
    assert traces == [(5, 6)]
    assert donated.is_deleted()


def test_the_forward_pass_for_the_accuracy_is_free(data):
    """2 layers: 2 products forwards, 2 for dW, 1 for delta; none again for the accuracy."""
    epoch = jax.jit(training.make_epoch(sgd(0.1), batch_size=5))
    text = epoch.lower(fresh_state(sgd(0.1)), jax.random.key(0), *data).compile().as_text()
    assert text.count(" dot(") == 5


def test_epochs_are_vmapped_over_seeds_and_learning_rates(data):
    x, y = data

    def run(key, lr):
        optimizer = sgd(lr)
        state = training.init_state(funcnet.init(key, (6, 9, 4)), optimizer)
        return training.make_epoch(optimizer, batch_size=5)(state, key, x, y)

    keys, rates = jax.random.split(jax.random.key(0), 3), jnp.array([0.1, 0.2, 0.4])
    many = jax.jit(jax.vmap(run))(keys, rates)
    for i in range(3):
        one = jax.jit(run)(keys[i], rates[i])
        assert max(oracle.errors_in_eps(jax.tree.map(lambda a, i=i: a[i], many[0].params), one[0].params)) <= 64


def test_epochs_are_scanned_and_sharded(data):
    x, y = data
    x, y = np.concatenate([x, x])[:40], np.concatenate([y, y])[:40]
    epoch = training.make_epoch(sgd(0.1), batch_size=8)
    keys = jax.random.split(jax.random.key(0), 2)
    loop = fresh_state(sgd(0.1))
    for key in keys:
        loop, _ = jax.jit(epoch)(loop, key, x, y)
    run = jax.jit(lambda state, x, y: jax.lax.scan(lambda state, key: epoch(state, key, x, y), state, keys))
    assert max(oracle.errors_in_eps(run(fresh_state(sgd(0.1)), x, y)[0].params, loop.params)) <= 16

    cpus = jax.devices("cpu")[:4]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=cpus)
    batch = jax.device_put((x, y), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert max(oracle.errors_in_eps(run(fresh_state(sgd(0.1)), *batch)[0].params, loop.params)) <= 16


def test_masks_and_transform_are_fresh_in_every_step(data):
    seen = []

    def transform(key, x):
        noise = jax.random.uniform(key, x.shape)
        jax.debug.callback(lambda noise: seen.append(float(noise[0, 0])), noise)
        return x.astype(jnp.float32) / 255 + noise

    masks = partial(dropout_masks, rate=0.5)
    epoch = jax.jit(training.make_epoch(sgd(0.1), batch_size=5, transform=transform, masks=masks))
    state, _ = epoch(fresh_state(sgd(0.1)), jax.random.key(0), *data)
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 5
    plain, _ = jax.jit(training.make_epoch(sgd(0.1), batch_size=5, transform=transform))(
        fresh_state(sgd(0.1)), jax.random.key(0), *data
    )
    assert max(oracle.errors_in_eps(state.params, plain.params)) > 1e3


def test_a_full_batch_is_gradient_descent(data):
    x, y = data
    state, _ = jax.jit(training.make_epoch(sgd(0.5), batch_size=len(x)))(fresh_state(sgd(0.5)), jax.random.key(0), x, y)
    params = oracle.network(0, (6, 9, 4), np.float32)
    grads = funcnet.backward(params, x.astype(np.float32) / 255, y)
    by_hand = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    assert max(oracle.errors_in_eps(state.params, by_hand)) <= 8


def test_the_step_that_went_wrong_is_found(data):
    x, y = data
    x = x.astype(np.float32) / 255
    key = jax.random.key(0)
    step = training.make_step(sgd(0.1))
    start = fresh_state(sgd(0.1))
    at, good = training.first_nonfinite_step(step, start, key, x, y, batch_size=5)
    assert at is None
    assert int(good.step) == 4  # five steps, each loss seen before its update

    bad = np.asarray(training.plan_batches(key, len(x), 5).indices)[3, 2]
    x[bad] = np.nan
    at, good = training.first_nonfinite_step(step, start, key, x, y, batch_size=5)
    assert at == 3
    assert int(good.step) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.params))
    x[:] = np.nan
    at, good = training.first_nonfinite_step(step, start, key, x, y, batch_size=5)
    assert (at, int(good.step)) == (0, 0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 6), np.float32), np.zeros(2, np.int32), "x has 3 samples and y 2, expected the same number"),
        (np.ones((0, 6), np.float32), np.zeros(0, np.int32), "x has 0 samples and y 0, .* at least one"),
        (np.ones((3, 6), np.float32), np.array([0, 3, 4]), r"y\[2\] is 4, expected a class id from 0 to 3"),
        (np.ones((3, 6), np.float32), np.array([0, -1, 7]), r"y\[1\] is -1, expected a class id from 0 to 3"),
    ],
)
def test_bad_data_is_named(x, y, message):
    state = fresh_state(sgd(0.1))
    with pytest.raises(ValueError, match=message):
        training.make_epoch(sgd(0.1), batch_size=2)(state, jax.random.key(0), x, y)
    with pytest.raises(ValueError, match=message):
        training.evaluate(state.params, x, y)


@pytest.mark.parametrize("size", [0, -1, 4.0, "4"])
def test_bad_batch_size_is_named(data, size):
    message = f"batch_size is {size!r}, expected a whole number of at least 1"
    with pytest.raises(ValueError, match=message):
        training.make_epoch(sgd(0.1), batch_size=size)
    with pytest.raises(ValueError, match=message):
        training.evaluate(fresh_state(sgd(0.1)).params, *data, batch_size=size)


def test_a_bad_label_under_jit_makes_the_loss_nan(data):
    x, y = data
    _, metrics = jax.jit(training.make_epoch(sgd(0.1), batch_size=5))(
        fresh_state(sgd(0.1)), jax.random.key(0), x, np.where(y == 3, 4, y)
    )
    assert np.isnan(metrics.loss)


def test_the_network_reaches_all_that_a_step_calls(data):
    """An augment and a gradient of one's own get it as `make_step` does."""
    network, seen = Network(activations.tanh, loss=funcnet.squared_error), []

    def augment(key, params, x, y, sample_weight, network):
        seen.append(("augment", network, sample_weight is None))
        return x, y, sample_weight

    def gradient(params, x, y, network, *, masks, sample_weight):
        seen.append(("gradient", network, masks is None, sample_weight is None))
        return funcnet.value_and_backward(params, x, y, network, masks=masks, sample_weight=sample_weight)

    x, y = data[0][:20], data[1][:20]
    state, metrics = fresh_state(sgd(0.1)), []
    for settings in ({}, {"augment": augment, "value_and_gradient": gradient}):
        epoch = jax.jit(training.make_epoch(sgd(0.1), network, batch_size=20, **settings))
        new, of_epoch = epoch(state, jax.random.key(0), x, y)
        metrics.append((of_epoch.loss, new.params))
    assert seen == [("augment", network, True), ("gradient", network, True, True)]
    assert metrics[0][0] == pytest.approx(
        oracle.objective(jax.tree.map(np.asarray, state.params), x / 255.0, y, "tanh", "squared_error"), rel=1e-5
    )
    assert max(oracle.errors_in_eps(*metrics)) <= 16


@pytest.mark.parametrize("size", [5, pytest.param(23, marks=pytest.mark.slow)])
def test_weighted_samples_are_the_textbook_s_loop(data, size):
    """Each batch's weighted mean, against NumPy; batches of weight 0 change nothing."""
    x, y = data
    w = np.where(np.arange(23) % 3 == 0, 0, np.linspace(0.1, 2, 23)).astype(np.float32)
    key = jax.random.key(3)
    rows = np.asarray(training.plan_batches(key, 23, size).indices)
    w[rows[0]] = 0 if size < 23 else w[rows[0]]
    epoch = jax.jit(training.make_epoch(adam(1e-2), batch_size=size))
    state, metrics = epoch(fresh_state(adam(1e-2)), key, x, y, w)

    want, total, correct = fresh_state(adam(1e-2)), 0.0, 0.0
    for i, row in enumerate(rows):
        there = row[: 23 - i * size]
        if not w[there].any():
            continue
        xb = (x[there] / 255).astype(np.float32)
        total += w[there].sum() * float(funcnet.objective(want.params, xb, y[there], sample_weight=w[there]))
        correct += w[there] @ (oracle.forward(jax.tree.map(np.asarray, want.params), xb, "relu").argmax(1) == y[there])
        grads = funcnet.backward(want.params, xb, y[there], sample_weight=w[there])
        updates, opt_state = adam(1e-2).update(grads, want.opt_state, want.params)
        want = training.TrainState(funcnet.apply_updates(want.params, updates), opt_state, want.step + 1)
    assert max(oracle.errors_in_eps(state.params, want.params)) <= 64
    assert int(state.step) == int(want.step) == len(rows) - (size < 23)
    assert metrics.loss == pytest.approx(total / w.sum(), rel=1e-5)
    assert metrics.accuracy == pytest.approx(correct / w.sum(), rel=1e-5)
    huge, of_huge = epoch(fresh_state(adam(1e-2)), key, x, y, w * np.float32(1e38))
    assert max(oracle.errors_in_eps(huge.params, state.params)) <= 64
    assert float(of_huge.loss) == pytest.approx(float(metrics.loss), rel=1e-5)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(7,\), expected \(23,\), one per sample"):
        epoch(state, key, x, y, w[:7])


OPTAX = {
    "dog": optax.contrib.dog,
    "reduce_on_plateau": lambda: optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
    "polyak_sgd": optax.polyak_sgd,
    "lbfgs": optax.lbfgs,
    "prodigy": optax.contrib.prodigy,
    "ours in theirs": lambda: optax.apply_if_finite(adam(1e-2), 3),
    "theirs in ours": lambda: averaged(optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()), 0.9),
}


SLOW_OPTAX = "polyak_sgd", "lbfgs", "prodigy", "theirs in ours"  # the test of the line search has all that these take


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW_OPTAX)) for n in OPTAX])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_any_optax_transformation_trains_twice_from_the_same_parameters(data, name, dtype):
    """Those that want the loss, the gradient or the function, and those that keep the parameters; nothing is taken."""
    x, y = data[0][:20], data[1][:20]
    with jax.numpy_dtype_promotion("standard"):  # as optax needs it
        params = jax.tree.map(jnp.asarray, oracle.network(0, (6, 9, 4), np.float32))
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        params[1] = (params[1][0], params[0][1][:4] * 0)
        optimizer, ends = OPTAX[name](), []
        epoch = jax.jit(training.make_epoch(optimizer, batch_size=10), donate_argnums=0)
        for _ in range(2):
            state, key, losses = training.init_state(params, optimizer), jax.random.key(0), []
            for _ in range(3):
                state, metrics = epoch(state, key, x, y)
                losses.append(float(metrics.loss))
            ends.append(losses)
    assert ends[0] == ends[1]
    assert ends[0][-1] < ends[0][0]


def test_line_search_is_that_of_optax(data):
    """One batch of all: `lbfgs` gets the value, the gradient and the function that a loop by hand gives it."""
    x, y = data
    params = jax.tree.map(jnp.asarray, oracle.network(0, (6, 9, 4), np.float32))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.lbfgs()
        epoch = jax.jit(training.make_epoch(optimizer, batch_size=23))
        state, opt_state, want = training.init_state(params, optimizer), optimizer.init(params), params
        x_ = x.astype(np.float32) / 255

        @jax.jit
        def step(params, opt_state):
            def value_fn(params):
                return funcnet.objective(params, x_, y)

            value, grads = jax.value_and_grad(value_fn)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params, value=value, grad=grads, value_fn=value_fn)
            return optax.apply_updates(params, updates), opt_state

        for _ in range(3):
            state, _ = epoch(state, jax.random.key(0), x, y)
            want, opt_state = step(want, opt_state)
    assert float(funcnet.objective(state.params, x_, y)) == pytest.approx(
        float(funcnet.objective(want, x_, y)), rel=1e-3
    )


def test_a_state_has_buffers_of_its_own(data):
    """One array in two layers, NumPy's, and a run that is donated: the caller keeps his arrays."""
    W, b = jnp.eye(6), jnp.zeros(6)
    params = [(W, b), (W, b)]
    epoch = jax.jit(training.make_epoch(adam(0.1), batch_size=5), donate_argnums=0)
    for given in (params, jax.tree.map(np.asarray, params)):
        state = training.init_state(given, adam(0.1))
        state, _ = epoch(state, jax.random.key(0), data[0], data[1])
        assert not any(np.array_equal(p, q) for p, q in zip(*map(jax.tree.leaves, (state.params, given)), strict=True))
    np.testing.assert_array_equal(W, np.eye(6))
    for key in (
        jax.random.key(0),
        jax.random.PRNGKey(0),
        jax.random.key(0, impl="rbg"),
    ):  # of any kind, kept in a state
        kept = training.init_state([(W, key)], funcnet.Optimizer(lambda params: params, None))
        assert jax.tree.map(type, kept.params) == [(type(W), type(key))]


def test_a_list_in_a_jitted_epoch_is_refused_and_a_seed_is_no_key(data):
    epoch, state = training.make_epoch(sgd(0.1), batch_size=5), fresh_state(sgd(0.1))
    with pytest.raises(ValueError, match="x is a list, traced number by number: convert it to an array before jit"):
        jax.jit(epoch)(state, jax.random.key(0), data[0].tolist(), data[1])
    with pytest.raises(ValueError, match=r"key is .*, expected a JAX random key"):
        epoch(state, 0, *data)


def test_batches_that_are_laid_out_may_hold_targets(data):
    x, y = data[0][:20].reshape(4, 5, 6), np.eye(4, dtype=np.float32)[data[1][:20]].reshape(4, 5, 4)
    epoch = jax.jit(training.make_prebatched_epoch(training.make_step(sgd(0.1)), samples=20))
    by_targets, by_ids = (
        epoch(fresh_state(sgd(0.1)), jax.random.key(0), x, y)[0].params for y in (y, y.argmax(-1).astype(np.int32))
    )
    assert max(oracle.errors_in_eps(by_targets, by_ids)) <= 16


def test_networks_side_by_side_are_each_as_by_itself(data):
    traced = jax.jit(training.for_each(jnp.sin)).trace(jnp.ones(3))
    for platform in ("cpu", "cuda"):
        in_turn = "stablehlo.while" in traced.lower(lowering_platforms=(platform,)).as_text()
        assert in_turn == (platform == "cpu")

    def together(n, size):
        program = jax.jit(training.for_each(jnp.sin)).trace(jnp.ones((n, size))).lower().as_text()
        return int(re.search(r"stablehlo.sine .* : tensor<(?:(\d+)x)?\d+xf32>", program)[1] or 1)

    assert [together(*shape) for shape in ((8, 250), (6, 250), (8, 700_000))] == [4, 1, 1]

    def run(key):
        state = training.init_state(funcnet.init(key, (6, 9, 4)), sgd(0.1))
        return training.make_epoch(sgd(0.1), batch_size=5)(state, key, *data)[0].params

    keys, alone = jax.random.split(jax.random.key(0), 4), jax.jit(run)
    for n, i in itertools.product((3, 4), range(3)):
        many, key = jax.jit(training.for_each(run))(keys[:n]), keys[i]
        assert max(oracle.errors_in_eps(jax.tree.map(lambda leaf, i=i: leaf[i], many), alone(key))) <= 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda params: training.init_state(params, adam),
            "optimizer is <function adam .*, expected an Optimizer",
        ),
        (lambda params: training.make_step(0.1), "optimizer is 0.1 of type float, expected an Optimizer"),
        (lambda params: training.make_step(sgd(0.1), masks=0.5), "masks is 0.5 of type float, expected a function"),
        (
            lambda params: training.make_step(sgd(0.1), accumulate=0),
            "accumulate is 0, expected a whole number of at least 1",
        ),
        (lambda params: sgd("0.1"), "sgd: lr is '0.1' of type str, expected a number, an array, or one of schedules"),
    ],
    ids=["function", "number", "masks", "accumulate", "rate"],
)
def test_what_is_no_optimizer_and_no_function_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(funcnet.init(jax.random.key(0), (4, 3)))


def test_a_state_of_another_optimizer_is_refused():
    """Also where it would fit by luck: Adam's has all that RMSprop asks for."""
    params, key = funcnet.init(jax.random.key(0), (4, 3)), jax.random.key(1)
    x, y = np.ones((5, 4), np.float32), np.array([0, 1, 2, 0, 1])
    others = training.init_state(params, adam(0.1))
    message = "state.opt_state, of type AdamState, was made by another optimizer or for other parameters: make a"
    for optimizer in (funcnet.rmsprop(0.1), sgd(0.1), optax.adam(0.1)):
        with pytest.raises(ValueError, match=message):
            training.make_step(optimizer)(others, key, x, y)
    with pytest.raises(ValueError, match=message):
        training.make_step(adam(0.1))(others._replace(params=funcnet.init(key, (4, 8, 3))), key, x, y)
    with pytest.raises(ValueError, match="state is a list of 1, expected a TrainState: init_state"):
        training.make_step(sgd(0.1))(params, key, x, y)


def test_an_accumulated_step_takes_the_weights_that_a_plain_one_takes():
    """Huge ones, and those of half precision, whose sum has no number in their own dtype."""
    params, x, y = oracle.network(0, (4, 3), np.float32), np.ones((8, 4), np.float32), np.arange(8) % 3
    state = training.init_state(params, sgd(0.1))
    steps = [jax.jit(training.make_step(sgd(0.1), accumulate=parts)) for parts in (1, 2)]
    for weights in (np.full(8, 1e38, np.float32), np.full(8, 60_000, np.float16)):
        plain, accumulated = (step(state, jax.random.key(0), x, y, weights)[1] for step in steps)
        np.testing.assert_allclose([accumulated.loss, accumulated.accuracy], [plain.loss, plain.accuracy], rtol=1e-6)
        assert plain.accuracy in (np.float32(2 / 8), np.float32(3 / 8))


def test_an_epoch_with_weights_is_replayed_with_them():
    """A sample of weight 0 does not count, and a batch without weight is passed by, as in the epoch."""
    params = oracle.network(0, (4, 3), np.float32)
    x, y, weights = np.ones((6, 4), np.float32), np.zeros(6, np.int32), np.ones(6, np.float32)
    x[2], key, state = np.nan, jax.random.key(1), training.init_state(params, sgd(0.1))
    batches = training.plan_batches(key, 6, 2)
    (at,) = [i for i, row in enumerate(np.asarray(batches.indices)) if 2 in row]
    weights[np.asarray(batches.indices)[at]] = 0
    step = training.make_step(sgd(0.1))
    replay = partial(training.first_nonfinite_step, step, state, key, x, y, batch_size=2)
    assert replay()[0] == at
    assert replay(sample_weight=weights)[0] is None
    _, metrics = training.make_epoch(sgd(0.1), batch_size=2)(state, key, x, y, weights)
    assert np.isfinite(metrics.loss)


@jax.tree_util.register_pytree_node_class
class Opaque:
    """A state that cannot be compared."""

    def __init__(self, mean):
        self.mean = mean

    def tree_flatten(self):
        return [self.mean], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


@pytest.mark.parametrize(
    "start",
    [lambda params: Opaque(jax.tree.map(jnp.zeros_like, params)), lambda params: jax.tree.map(np.zeros_like, params)],
    ids=["not comparable", "numpy"],
)
def test_an_optimizer_of_one_s_own_may_start_as_it_likes(start):
    params, x, y = oracle.network(0, (4, 3), np.float32), np.ones((5, 4), np.float32), np.arange(5) % 3
    own = funcnet.Optimizer(start, lambda grads, state, params: (jax.tree.map(jnp.negative, grads), state))
    state, _ = training.make_step(own)(training.init_state(params, own), jax.random.key(0), x, y)
    assert state.step == 1
