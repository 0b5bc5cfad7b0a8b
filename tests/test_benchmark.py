"""That the benchmark compares like with like: all peers take the same steps, in turn, and the sums are right.

PyTorch's compiler calls a C++ compiler, and is slow.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
import time

import benchmark
import gpu
import jax
import numpy as np
import peers
import pytest
import timing
from mnist.settings import from_command_line

import funcnet


@pytest.fixture
def task():
    """Five classes of noise; one batch is all of it, so that the order does not matter."""
    rng = np.random.default_rng(0)
    params = [(np.asarray(W), np.asarray(b)) for W, b in funcnet.init(jax.random.key(0), (20, 8, 6, 5))]
    x = rng.integers(0, 256, (64, 20), dtype=np.uint8)
    return peers.Task(params, x, rng.integers(0, 5, 64, dtype=np.int32), batch_size=64, rate=0.5, seed=0)


def in_float64(task, epochs):
    """The same steps in plain NumPy, one sample at a time."""
    params = [(W.astype(np.float64), b.astype(np.float64)) for W, b in task.params]
    for _ in range(epochs):
        sums = [(np.zeros_like(W), np.zeros_like(b)) for W, b in params]
        for image, label in zip(task.x / 255, task.y, strict=True):
            activations = [image]
            for W, b in params[:-1]:
                activations.append(np.maximum(activations[-1] @ W + b, 0))
            z = activations[-1] @ params[-1][0] + params[-1][1]
            delta = np.exp(z) / np.exp(z).sum() - np.eye(5)[label]
            for l in (2, 1, 0):
                sums[l][0][...] += np.outer(activations[l], delta)
                sums[l][1][...] += delta
                delta = params[l][0] @ delta * (activations[l] > 0)
        steps = [(task.rate * dW / len(task.x), task.rate * db / len(task.x)) for dW, db in sums]
        params = [(W - dW, b - db) for (W, b), (dW, db) in zip(params, steps, strict=True)]
    return params


EVERYBODY = benchmark.OURS | peers.PEERS | peers.PEERS_IN_BFLOAT16 | peers.SCANS | peers.SCANS_IN_BFLOAT16


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch to itself, when it compiles
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if "PyTorch, compiled" in name else name for name in EVERYBODY],
)
def test_everybody_takes_the_same_steps(task, name):
    for framework, package in (("Flax", "flax"), ("Equinox", "equinox"), ("PyTorch", "torch")):
        if framework in name:
            pytest.importorskip(package, reason="needs the extra `bench`")
    if "PyTorch, compiled" in name and not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as their users have them
        trainer = EVERYBODY[name](task)
        for _ in range(3):
            trainer.epoch()
        got = trainer.params()
    atol = 1e-2 if "bfloat16" in name else 1e-5
    for (W, b), (W_want, b_want) in zip(got, in_float64(task, 3), strict=True):
        np.testing.assert_allclose(np.asarray(W), W_want, rtol=0, atol=atol)
        np.testing.assert_allclose(np.asarray(b), b_want, rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_predictions_agree(task):
    x = peers.as_pixels(task.x)
    want = np.asarray(funcnet.predict([(W, b) for W, b in task.params], x))
    np.testing.assert_allclose(peers.predictions(task.params, x)["NumPy by hand"](), want, rtol=0, atol=1e-6)


def test_all_that_claim_the_same_are_compared():
    ours = {
        "per_sample_norms": lambda: np.array([1.0, 2.0]),
        "clipped_backward": lambda: [np.ones((2, 3))],
        "per_sample_backward": lambda: [np.ones((5, 2, 3))],
    }
    benchmark.check_agreement(ours | {"norms: right": lambda: np.array([1.0, 2.0])})
    with pytest.raises(AssertionError, match="norms: wrong"):
        benchmark.check_agreement(ours | {"norms: wrong": lambda: np.array([2.0, 1.0])})


@pytest.mark.parametrize(
    ("only", "faster", "names"),
    [
        ("", True, [*benchmark.OURS, *peers.PEERS, *peers.PEERS_IN_BFLOAT16]),
        ("", False, ["funcnet", "funcnet's epoch, jax.grad, optax", *peers.PEERS]),
        ("bfloat16", False, ["funcnet", "funcnet, bfloat16 products", *peers.PEERS_IN_BFLOAT16]),
        ("NumPy|scikit", True, ["funcnet", "scikit-learn", "NumPy by hand"]),
    ],
)
def test_who_takes_part(monkeypatch, only, faster, names):
    monkeypatch.setattr(benchmark, "bfloat16_is_faster", lambda: faster)
    assert list(benchmark.contestants(only)) == names


def test_each_figure_is_said_as_soon_as_it_is_there(monkeypatch, tmp_path, capsys):
    def suite(seconds):
        """About this."""
        yield timing.Row("case", "first", seconds, (seconds, seconds), 1.0)
        assert capsys.readouterr().err == "case: first 2 s ±0%, 1.00x\n"
        yield timing.Row("case", "second", seconds, (seconds, seconds), 1.0, {"accuracy": "97%"})

    monkeypatch.setitem(benchmark.SUITES, "step", suite)
    benchmark.main(("step",), seconds=2.0, out=tmp_path / "figures.json")
    assert "## step\n\nAbout this.\n\n|  | case |" in capsys.readouterr().out
    (_, rows), *_ = json.loads((tmp_path / "figures.json").read_text())["suites"].items()
    assert [row["candidate"] for row in rows] == ["first", "second"]


def test_on_a_gpu_a_suite_that_fails_does_not_end_the_others(monkeypatch, tmp_path, capsys):
    def broken(size):
        yield timing.Row("case", "before", 1.0, None, 1.0)
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.SUITES, "ceilings", broken)
    monkeypatch.setitem(gpu.SUITES, "epoch", lambda size: iter([timing.Row("case", "a", size.seconds, None, 1.0)]))
    gpu.main(("ceilings", "epoch"), small=True, out=tmp_path / "figures.json")
    said = capsys.readouterr()
    assert "RuntimeError: out of memory" in said.err
    assert "## ceilings" in said.out
    assert "## epoch" in said.out
    assert [*json.loads((tmp_path / "figures.json").read_text())["suites"]] == ["ceilings", "epoch"]


@pytest.mark.slow
def test_many_networks_are_timed_at_toy_size():
    one, *many = gpu.networks_suite(gpu.SMALL)
    assert one.candidate == "1"
    assert [row.candidate for row in many] == [f"{n}" for n in gpu.SMALL.networks]
    assert all(row.seconds > 0 for row in many)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_all_of_the_gpu_script_works_at_toy_size(tmp_path):
    out = tmp_path / "figures.json"
    subprocess.run([sys.executable, gpu.__file__, "--small", "--out", out], check=True)
    suites = json.loads(out.read_text())["suites"]
    assert [*suites] == [*gpu.FIGURES]
    assert len(suites["recipes"]) == 2
    assert "funcnet" in {row["candidate"] for row in suites["epoch"]}


@pytest.mark.slow
def test_settings_for_a_gpu_are_tried_on_held_out_images(monkeypatch):
    monkeypatch.setattr(gpu, "TRIALS", gpu.TRIALS[-1:])
    rows = [*gpu.tune_suite(gpu.SMALL)]
    assert [row.candidate.split()[-2:] for row in rows] == [["--fold", "0"], ["--fold", "1"]]
    assert all("validation error" in row.more and "test error" not in row.more for row in rows)


def test_the_settings_to_try_on_a_gpu_are_those_of_the_script():
    for more in gpu.TRIALS:
        assert from_command_line([*gpu.LARGE.recipe, *more]).recipe == "distort-large"


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0)
    order = []
    candidates = {name: lambda name=name: order.append(name) or time.sleep(0.06) for name in ("a", "b")}
    first, second = timing.compare("case", candidates, 0.01, {"b": {"memory in MB": 1.5}})
    turn = ["a", "a", "b", "b"]  # each call after one that is not timed
    assert order == [*turn, *turn, *turn[::-1], *turn, *turn[::-1], *turn]
    assert first.ratio == 1
    header, _, a, b = timing.markdown([first, second]).splitlines()
    assert header == "|  | case |"
    assert re.fullmatch(r"\| a \| [\d.]+ ms ±\d+%, 1\.00x \|", a)
    assert re.fullmatch(r"\| b \| [\d.]+ ms ±\d+%, [\d.]+x, memory in MB 1\.5 \|", b)


def test_units_are_readable():
    assert timing.readable(0.00123456) == "1.23 ms"


def test_flops_of_a_step_are_those_of_its_products():
    # forward and dW for both layers, delta for the second alone, two operations for each product of numbers
    assert benchmark.step_flops((3, 5, 2), 7) == 2 * 7 * (3 * 5 + 5 * 2) * 2 + 2 * 7 * 5 * 2


def test_an_expression_that_is_none_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "epoch", "--only", "(NumPy"])
    with pytest.raises(SystemExit, match=r"^benchmark: --only '\(NumPy' is no regular expression: missing \)"):
        runpy.run_module("benchmark", run_name="__main__")
