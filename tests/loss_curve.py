"""A process of `test_sharding.py`: the loss of every step of an epoch, over all devices of all processes."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

import funcnet
from funcnet import datasets, sharding, training


def main(address, processes, process, out, data, mesh):
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(process))
    x, y = (datasets.load_mnist() if data == "mnist" else datasets.load_digits()).train
    x, y = x[:10_000], y[:10_000]  # of MNIST 79 steps: two processes take many times as long for one
    optimizer = funcnet.sgd(0.1)
    state = training.init_state(funcnet.init(jax.random.key(0), (x.shape[1], 64, 10)), optimizer)
    step, key = jax.jit(training.make_step(optimizer)), jax.random.key(1)
    plan = training.plan_batches(key, len(x), 128)
    batches = x[plan.indices], y[plan.indices]
    if mesh:
        mesh = sharding.make_mesh(mesh)
        assert mesh.size == jax.device_count() == 2 * int(processes)
        state = sharding.put(state, sharding.state_shardings(state, mesh))
        batches = sharding.shard_batches(key, x, y, batch_size=128, mesh=mesh)
    losses = []
    for i, weights in enumerate(np.asarray(plan.weights)):
        state, metrics = step(state, key, batches[0][i], batches[1][i], weights)
        losses.append(float(metrics.loss))
    Path(out).write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
