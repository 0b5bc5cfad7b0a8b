"""The arithmetic of `scripts/benchmarks/scaling.py`, against figures worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scaling
from jax.sharding import PartitionSpec

from funcnet import sharding


def test_bytes_as_xla_writes_them():
    assert scaling.size("f32[784,512]{1,0}") == 4 * 784 * 512
    assert scaling.size("(bf16[3,2]{1,0}, f32[])") == 16
    assert scaling.size("pred[]") == 1


def test_what_moves_is_read_from_the_program():
    """A sum over rows that lie on eight devices moves one row of the result, and a gather the whole."""
    mesh = sharding.make_mesh("data=8")
    rows = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    x = sharding.put(np.ones((16, 5), np.float32), rows)

    def moved(fn):
        compiled = jax.jit(fn, out_shardings=sharding.replicated(mesh)).lower(x).compile()
        return [(kind, count) for kind, count in scaling.collectives(compiled)]

    assert moved(lambda x: x.sum(0)) == [("all-reduce", 20)]
    assert moved(lambda x: x) == [("all-gather", 320)]
    assert moved(lambda x: jnp.ones(3)) == []


def test_a_step_s_work():
    """2-3-4, six samples: 6 * 6 * (6 + 12) FLOPs less the first delta's 2 * 6 * 6."""
    one = scaling.work((2, 3, 4), 6, data=1, model=1, half=False, reduced=0)
    assert one == (4 * (4 * 18 + 2 * 6 * 9), 576, 4 * (2 * 18 + 4 * 6 * 9) + 4 * 18, 4 * 7 * 18, 0)
    shared = scaling.work((2, 3, 4), 6, data=3, model=2, half=True, reduced=92)
    assert shared == (4 * (4 * 9 + 2 * 2 * 9), 96, 2 * (2 * 9 + 4 * 2 * 9) + 4 * 9, 4 * 7 * 9, 92)


def test_a_prediction():
    """Bound by products, then by memory; in a ring of two, each sends as much as is reduced."""
    rates = scaling.Rates(flops=10.0, memory=100.0, link=5.0)
    assert scaling.predicted(scaling.Work(0, 50, 100, 300, 0), 1, rates) == (5, 3, 0)
    assert scaling.predicted(scaling.Work(0, 5, 100, 300, 20), 2, rates) == (1, 3, 4)
    assert scaling.predicted(scaling.Work(0, 5, 100, 300, 20), 4, rates)[2] == pytest.approx(6)
    assert scaling.predicted(scaling.Work(0, 5, 100, 300, 0), 1, rates._replace(link=math.inf))[2] == 0


@pytest.mark.slow
def test_the_tables(capsys):
    """Slow: it compiles for six meshes and a pod; what the tables hold is tested above."""
    scaling.main(hidden_sizes=(16,), batch_size=32)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[0].strip("| ") for row in rows] == ["data=1", "data=2", "data=4", "data=8", "data=4,model=2", "model=8"]
    assert all("all-reduce" in row[2] for row in rows[1:])
    assert rows[0][2] == "nothing"
    scaling.main(hidden_sizes=(16,), batch_size=1024, pod=True)
    assert "| 256 |" in capsys.readouterr().out
