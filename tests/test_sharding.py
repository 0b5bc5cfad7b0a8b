"""One network over eight devices and over two processes: the same numbers, and what moves between them."""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcnet
from funcnet import Network, sharding, training

MESHES = {
    "data 8": ("data=8", AxisType.Auto),
    "data 8, explicit": ("data=8", AxisType.Explicit),
    "data 4 x model 2": ("data=4,model=2", AxisType.Auto),
    "model 8": ("model=8", AxisType.Auto),
}
SIZES = (6, 16, 8, 24, 5)
COLLECTIVE = re.compile(
    r"= (\(?.*?\)?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def laid_out(name):
    """The mesh, as a context: explicit axes have to be in sight."""
    text, axis_type = MESHES[name]
    mesh = sharding.make_mesh(text, axis_type=axis_type)
    if axis_type == AxisType.Auto:
        return mesh, nullcontext()
    return mesh, jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh)


def rows(mesh, tree):
    return sharding.put(tree, NamedSharding(mesh, PartitionSpec("data")))


def collectives(compiled):
    """What moves between devices: (operation, how many arrays) for each, in the order of the program."""
    found = [COLLECTIVE.search(line) for line in compiled.as_text().splitlines()]
    return [(m[2], m[1].count("f32[") - m[1].count("f32[]")) for m in found if m]


def in_turn(first, second):
    """Every mesh with the first of two values or the second, in turn; what that leaves out is slow."""
    return [
        pytest.param(name, value, marks=() if i % 2 == j else pytest.mark.slow, id=f"{name}-{value}")
        for i, name in enumerate(MESHES)
        for j, value in enumerate((first, second))
    ]


@pytest.mark.parametrize(("name", "compute_dtype"), in_turn(None, "bfloat16"))
def test_gradients_are_those_of_one_device(name, compute_dtype):
    (params, x, y), arrays = oracle.make_case(0, SIZES, (16,), np.float32, weighted=True, masked=True)
    backward = jax.jit(partial(funcnet.value_and_backward, network=Network(compute_dtype=compute_dtype)))
    value, whole = backward(params, x, y, **arrays)
    mesh, in_sight = laid_out(name)
    with in_sight:
        shardings = sharding.param_shardings(params, mesh)
        batch = rows(mesh, (x, y, arrays))
        sharded_value, sharded = backward(sharding.put(params, shardings), batch[0], batch[1], **batch[2])
    assert max(oracle.errors_in_eps(sharded, whole)) <= 16
    assert sharded_value == pytest.approx(float(value), rel=1e-6)
    if compute_dtype is None:
        exact = oracle.gradient(params, x, y, "relu", "softmax_cross_entropy", **arrays)
        assert max(oracle.errors_in_eps(sharded, jax.tree.map(lambda g: g.astype(np.float32), exact))) <= 16
    for gradient, wanted in zip(jax.tree.leaves(sharded), jax.tree.leaves(shardings), strict=True):
        assert gradient.sharding.is_equivalent_to(wanted, gradient.ndim)


@pytest.mark.parametrize(("name", "compute_dtype"), in_turn(None, "bfloat16"))
def test_one_all_reduce_for_the_gradients(name, compute_dtype):
    """Read from the compiled step: no sample moves, the gradients and the loss travel together."""
    optimizer = funcnet.adam(1e-3)
    state = training.init_state(funcnet.init(jax.random.key(0), SIZES), optimizer)
    mesh, in_sight = laid_out(name)
    with in_sight:
        shardings = sharding.state_shardings(state, mesh)
        step = training.make_step(optimizer, Network(compute_dtype=compute_dtype))
        step = jax.jit(step, out_shardings=(shardings, None))
        x, y = rows(mesh, (np.ones((16, 6), np.uint8), np.zeros(16, np.int32)))
        found = collectives(step.lower(sharding.put(state, shardings), jax.random.key(0), x, y).compile())
    leaves = 2 * (len(SIZES) - 1)
    if jax.__version_info__ < (0, 10):  # whose XLA does not put them together on a CPU
        assert {kind for kind, _ in found} == {"all-reduce"}
        return
    gradients = [("all-reduce", leaves)] if mesh.shape["data"] > 1 else []
    within = [c for c in found if c not in gradients]
    assert found.count(("all-reduce", leaves)) == len(gradients)
    if mesh.shape["model"] == 1:
        assert within == []
    else:  # sums over the units that are split: forwards after W_2 and W_4, backwards before W_3
        assert {kind for kind, _ in within} == {"all-reduce"}
        assert 2 <= len(within) <= 4


QUICK = ("data 8, explicit", 2), ("data 4 x model 2", 1)


@pytest.mark.parametrize(
    ("name", "accumulate"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in product(MESHES, (1, 2))],
)
def test_an_epoch_is_the_same_on_every_mesh(name, accumulate):
    """Also its order and what it draws: images are deformed and units dropped as on one device."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (70, 6), np.uint8), rng.integers(0, 5, 70, np.int32)  # the last batch is ragged
    explicit = MESHES[name][1] == AxisType.Explicit

    def transform(key, x):
        return x.astype(jnp.float32) / 255 + (0 if explicit else jax.random.uniform(key, x.shape))

    settings = {"transform": transform, "accumulate": accumulate}
    if not explicit:
        settings["masks"] = partial(funcnet.dropout_masks, rate=0.25)
    optimizer, key = funcnet.sgd(0.1, momentum=0.9), jax.random.key(1)
    state = training.init_state(funcnet.init(jax.random.key(0), SIZES), optimizer)
    expected, metrics = jax.jit(training.make_epoch(optimizer, batch_size=16, **settings))(state, key, x, y)
    mesh, in_sight = laid_out(name)
    with in_sight:
        shardings = sharding.state_shardings(state, mesh)
        epoch = training.make_prebatched_epoch(training.make_step(optimizer, **settings), samples=70)
        epoch = jax.jit(epoch, out_shardings=(shardings, None))
        batches = sharding.shard_batches(key, x, y, batch_size=16, mesh=mesh)
        compiled = epoch.lower(sharding.put(state, shardings), key, *batches).compile()
        new, sharded_metrics = compiled(sharding.put(state, shardings), key, *batches)
    assert max(oracle.errors_in_eps(new.params, expected.params)) <= 64
    np.testing.assert_allclose(*map(jax.tree.leaves, (sharded_metrics, metrics)), rtol=1e-5)
    assert {kind for kind, _ in collectives(compiled)} == {"all-reduce"}


def test_parts_of_a_batch_add_up():
    """Weighted, with parts that weigh nothing at all, in NumPy's float64."""
    (params, x, y), arrays = oracle.make_case(0, SIZES, (12,), np.float32, weighted=True, masked=False)
    w = arrays["sample_weight"].copy()
    w[[1, 5, 9]] = 0  # all of the second of four parts
    step = training.make_step(funcnet.sgd(1.0), accumulate=4)
    state = training.init_state(jax.tree.map(jnp.asarray, params), funcnet.sgd(1.0))
    new, metrics = jax.jit(step)(state, jax.random.key(0), x, y, w)
    exact = oracle.gradient(params, x, y, "relu", "softmax_cross_entropy", sample_weight=w)
    moved = jax.tree.map(lambda p, q: np.asarray(p) - np.asarray(q), params, new.params)
    assert max(oracle.errors_in_eps(moved, jax.tree.map(lambda g: g.astype(np.float32), exact))) <= 64
    value = oracle.objective(params, x, y, "relu", "softmax_cross_entropy", sample_weight=w)
    assert metrics.loss == pytest.approx(value, rel=1e-6)
    assert metrics.accuracy == pytest.approx(np.average(oracle.forward(params, x, "relu").argmax(1) == y, weights=w))


def test_accumulation_takes_the_memory_of_a_part():
    optimizer = funcnet.sgd(0.1)
    state = training.init_state(funcnet.init(jax.random.key(0), (8, 64, 4)), optimizer)
    x, y = np.ones((4096, 8), np.float32), np.zeros(4096, np.int32)

    def temporaries(parts):
        step = jax.jit(training.make_step(optimizer, accumulate=parts))
        return step.lower(state, jax.random.key(0), x, y).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(16) < temporaries(1) / 4


def test_a_batch_that_cannot_be_cut():
    step = training.make_step(funcnet.sgd(0.1), accumulate=3)
    state = training.init_state(funcnet.init(jax.random.key(0), (2, 3)), funcnet.sgd(0.1))
    with pytest.raises(ValueError, match="a batch has 4 samples, expected a multiple of 3"):
        step(state, jax.random.key(0), np.ones((4, 2), np.float32), np.zeros(4, np.int32))


def test_what_is_like_the_parameters_lies_like_them():
    """Also in the states of optax; counters are everywhere."""
    params = funcnet.init(jax.random.key(0), (6, 8, 4))
    mesh = sharding.make_mesh("data=4,model=2")
    for optimizer in (funcnet.adamw(1e-3), optax.adamw(1e-3), optax.sgd(0.1, momentum=0.9), optax.adafactor(0.1)):
        state = training.init_state(params, optimizer)
        shardings = sharding.state_shardings(state, mesh)
        laid = jax.tree.leaves(sharding.put(state, shardings))
        split = [leaf.shape for leaf in laid if not leaf.sharding.is_fully_replicated]
        like_params = [leaf.shape for leaf in laid].count((6, 8))
        assert split.count((6, 8)) == like_params >= 1
        assert split.count((8, 4)) == like_params
        for leaf, original in zip(laid, jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(leaf, original)


def test_a_width_that_cannot_be_split_stays_whole():
    params = funcnet.init(jax.random.key(0), (6, 9, 16, 10, 8, 7))
    specs = [W.spec for W, _ in sharding.param_shardings(params, sharding.make_mesh("model=8"))]
    assert specs == [
        PartitionSpec(),
        PartitionSpec(None, "model"),
        PartitionSpec("model", None),
        PartitionSpec(None, "model"),
        PartitionSpec("model", None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=16", "of 16 devices, expected 1 to 8"),
        ("data=0", "of 0 devices, expected 1 to 8"),
        ("rows=4", 'expected a description such as "data=4,model=2"'),
        ("data=2,data=4", "expected a description"),
        ("data", "expected a description"),
        ("data=-1", "expected a description"),
        ("", "expected a description"),
    ],
)
def test_meshes_that_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sharding.make_mesh(text)


def test_batches_that_are_refused():
    mesh = sharding.make_mesh("data=4")
    for batch_size in (6, 0, -4):
        with pytest.raises(ValueError, match=f"the batch size is {batch_size}, expected a positive multiple of 4"):
            sharding.shard_batches(jax.random.key(0), np.ones((12, 1)), np.ones(12), batch_size=batch_size, mesh=mesh)
    for n_x, n_y in ((12, 11), (11, 12), (0, 0)):
        with pytest.raises(ValueError, match=f"there are {n_x} samples in x and {n_y} in y"):
            sharding.shard_batches(jax.random.key(0), np.ones((n_x, 1)), np.ones(n_y), batch_size=4, mesh=mesh)
    epoch = training.make_prebatched_epoch(training.make_step(funcnet.sgd(0.1)), samples=100)
    with pytest.raises(ValueError, match="expected 25 batches of 4 in both, for 100 samples"):
        epoch(None, jax.random.key(0), np.ones((3, 4, 1)), np.ones((3, 4)))


def test_a_batch_may_be_one_sample():
    x, y = np.arange(6).reshape(3, 2), np.arange(3)
    x, y = sharding.shard_batches(jax.random.key(0), x, y, batch_size=1, mesh=sharding.make_mesh("data=1"))
    assert sorted(y.ravel().tolist()) == [0, 1, 2]
    np.testing.assert_array_equal(x[..., 0], 2 * y)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def loss_curves(tmp_path, processes, *arguments):
    """The losses of each process, step by step, of an epoch over two devices each."""
    worker, address = Path(__file__).with_name("loss_curve.py"), f"127.0.0.1:{free_port()}"
    outs = [tmp_path / f"{processes}-{i}.json" for i in range(processes)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    running = [
        subprocess.Popen([sys.executable, worker, address, str(processes), str(i), out, *arguments], env=environment)
        for i, out in enumerate(outs)
    ]
    assert [process.wait(300) for process in running] == [0] * processes
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "meshes"),
    [("digits", ("data=4", "data=2,model=2")), pytest.param("mnist", ("data=4",), marks=pytest.mark.mnist)],
)
def test_two_processes_learn_what_one_does(tmp_path, data, meshes, request):
    """Over gloo on loopback, each feeding its own part of every batch: the same loss at every step."""
    if data == "mnist":
        request.getfixturevalue("mnist")
    (alone,) = loss_curves(tmp_path, 1, data, "")
    assert len(alone) == (79 if data == "mnist" else 12)
    assert alone[-1] < 0.8 * alone[0]
    for mesh in meshes:
        first, second = loss_curves(tmp_path, 2, data, mesh)
        assert first == second
        np.testing.assert_allclose(first, alone, rtol=1e-5)
