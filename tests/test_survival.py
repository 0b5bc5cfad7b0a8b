"""Runs that are killed, told to stop or lose a process, and go on: the same weights to the last bit."""

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import train_mnist

from funcnet import weights

SCRIPT = Path(train_mnist.__file__)
STARTED = []
SETTINGS = ["--dataset", "digits", "--hidden-sizes", "64", "--epochs", "40", "--batch-size", "32", "--dropout", "0.1",
            "--checkpoint-every", "0"]  # fmt: skip


def start(*arguments, devices=1):
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=8", f"device_count={devices}")
    environment = {**os.environ, "XLA_FLAGS": flags}
    environment.pop("FUNCNET_DATA", None)
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def none_left_running():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def finish(*arguments, code=0, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def bits_of(run_dir):
    return [np.asarray(leaf).tobytes() for layer in weights.load(run_dir / "weights.safetensors")[0] for leaf in layer]


def contents(run_dir):
    """Every file, the checkpoints' own by their number alone."""
    return {path.relative_to(run_dir).parts[:2] for path in run_dir.rglob("*") if path.is_file()}


def without_times(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row.keys() - {"samples_per_second", "seconds"}} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(*SETTINGS, "--run-dir", run_dir)
    return run_dir


def wait_for(process, seen):
    """Until it can be seen, or the process has ended."""
    while process.poll() is None and not seen():
        time.sleep(0.001)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, uninterrupted, kills):
    """SIGKILL again and again: at its start, between epochs, inside the writing of checkpoints and of the last files.

    Only a kill that met the process alive counts.
    """
    run_dir, rng = tmp_path / "run", random.Random(kills)

    def half_written():
        return {path for path in run_dir.glob("checkpoints/*tmp*") if not path.name.isdecimal()}

    def last_files():
        return [path.stat().st_mtime_ns for path in run_dir.glob("*.safetensors")]

    hit = inside = 0
    while hit < kills:
        begun = (run_dir / "config.json").is_file()
        process = start(*(["--resume", run_dir] if begun else [*SETTINGS, "--run-dir", run_dir]))
        old, before = half_written(), last_files()
        if hit >= 3 * kills // 4:  # as soon as the weights are there, and before the pictures are
            wait_for(process, lambda before=before: last_files() != before)
        elif hit % 2:  # as soon as a checkpoint is half there
            wait_for(process, lambda old=old: half_written() - old)
        else:
            until = time.monotonic() + rng.uniform(0, 4)
            wait_for(process, lambda until=until: time.monotonic() > until)
        process.kill()
        process.communicate()
        hit += process.returncode == -signal.SIGKILL
        inside += process.returncode == -signal.SIGKILL and bool(half_written() - old)
    assert inside >= kills // 5
    finish("--resume", run_dir)
    assert bits_of(run_dir) == bits_of(uninterrupted)
    assert without_times(run_dir) == without_times(uninterrupted)
    assert {top for top, *_ in contents(run_dir)} == {top for top, *_ in contents(uninterrupted)}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"37", "38", "39"}


def test_told_to_stop(tmp_path, uninterrupted):
    """SIGTERM: a checkpoint, an exit code of its own, and what to type."""
    run_dir = tmp_path / "run"
    process = start(*SETTINGS[:-1], "1e9", "--run-dir", run_dir)
    wait_for(process, (run_dir / "metrics.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 75
    epochs = int(re.search(rf"told to stop after (\d+) epochs; go on with --resume {run_dir}", err)[1])
    assert 1 <= epochs < 40
    assert {path.name for path in run_dir.iterdir()} == {"checkpoints", "config.json", "metrics.jsonl"}
    _, err = finish("--resume", run_dir)
    assert f"going on after {epochs} epochs" in err
    assert bits_of(run_dir) == bits_of(uninterrupted)


def test_ctrl_c_can_be_taken_back(tmp_path, uninterrupted):
    run_dir = tmp_path / "run"
    process = start(*SETTINGS, "--run-dir", run_dir)
    wait_for(process, (run_dir / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == 130
    finish("--resume", run_dir)
    assert bits_of(run_dir) == bits_of(uninterrupted)
    assert contents(run_dir) == contents(uninterrupted)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="orbax writes arrays on several devices by jax.set_mesh")
def test_on_another_mesh(tmp_path, uninterrupted):
    """The first epochs on four devices, the rest on two others, or on one: the same run, to rounding."""
    run_dir = tmp_path / "run"
    process = start(*SETTINGS, "--mesh", "data=4", "--run-dir", run_dir, devices=4)
    wait_for(process, (run_dir / "checkpoints" / "10").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 75
    finish("--resume", run_dir, "--mesh", "data=2,model=2", devices=4)
    for (W, b), (V, c) in zip(
        weights.load(run_dir / "weights.safetensors")[0],
        weights.load(uninterrupted / "weights.safetensors")[0],
        strict=True,
    ):
        np.testing.assert_allclose(W, V, atol=1e-3)
        np.testing.assert_allclose(b, c, atol=1e-3)
    ours, theirs = without_times(run_dir), without_times(uninterrupted)
    np.testing.assert_allclose([r["train_loss"] for r in ours], [r["train_loss"] for r in theirs], rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden-sizes", "32"], "hidden_sizes is (32,), but that run began with (64,)"),
        (["--seed", "1"], "seed is 1, but that run began with 0"),
        (["--recipe", "plain"], "--recipe, --repeat and --resume are ways to start; give one of them"),
        (["--run-dir", "elsewhere"], "goes on in that folder; --run-dir is elsewhere"),
    ],
)
def test_another_run_is_refused(uninterrupted, arguments, message):
    _, err = finish("--resume", uninterrupted, *arguments, code=1)
    assert message in err


def test_nothing_to_go_on_from(tmp_path):
    _, err = finish("--resume", tmp_path, code=1)
    assert f"--resume {tmp_path}: no run has begun there: there is no config.json in it" in err


def test_checkpoints_that_cannot_be_written(tmp_path):
    run_dir = tmp_path / "run"
    process = start(*SETTINGS, "--run-dir", run_dir)
    wait_for(process, (run_dir / "checkpoints").exists)
    process.kill()
    process.communicate()
    for path in sorted((run_dir / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run_dir / "checkpoints").rmdir()
    (run_dir / "checkpoints").write_text("in the way")
    _, err = finish("--resume", run_dir, code=1)
    assert f"train_mnist: checkpoints in {run_dir / 'checkpoints'}: the folder cannot be written" in err


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_two(*arguments, own=((), ())):
    """Two processes of two devices, each with arguments of its own."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(*arguments, *own[i], "--coordinator", address, "--processes", 2, "--process", i, devices=2)
        for i in range(2)
    ]


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="orbax writes arrays on several devices by jax.set_mesh")
@pytest.mark.parametrize(
    ("victim", "sent"),
    [(0, signal.SIGKILL), pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow), (1, signal.SIGINT)],
)
def test_a_process_that_dies_stops_the_others(tmp_path, uninterrupted, victim, sent):
    """With an error and in bounded time; then the run goes on, in two processes or in one."""
    run_dir = tmp_path / "run"
    two = start_two(*SETTINGS, "--mesh", "data=4", "--run-dir", run_dir)
    wait_for(two[0], (run_dir / "checkpoints" / "3").exists)
    two[victim].send_signal(sent)
    two[victim].communicate(timeout=10)
    assert two[victim].returncode == (130 if sent == signal.SIGINT else -sent)
    _, err = two[1 - victim].communicate(timeout=60)
    assert two[1 - victim].returncode != 0
    assert re.search("(?i)heartbeat|unavailable|connection|peer", err)
    if victim:
        _, err = finish("--resume", run_dir, "--mesh", "")
        assert re.search(r"going on after \d+ epochs", err)
    else:
        two = start_two("--resume", run_dir, "--mesh", "data=4")
        results = [process.communicate(timeout=120) for process in two]
        assert [process.returncode for process in two] == [0, 0], results
        assert re.search(r"going on after \d+ epochs", results[0][1])
        assert "accuracy" in results[0][0]
        printed = [line for line in results[1][0].splitlines() if not line.startswith("[Gloo]")]
        assert printed == []  # the other one prints
    ours, theirs = without_times(run_dir), without_times(uninterrupted)
    np.testing.assert_allclose([r["train_loss"] for r in ours], [r["train_loss"] for r in theirs], rtol=1e-3)
    assert len(ours) == 40


def ends(processes, *, within=60):
    """The exit codes and what was said, of processes that end by themselves."""
    said = [process.communicate(timeout=within)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="orbax writes arrays on several devices by jax.set_mesh")
def test_an_error_in_one_process_ends_all(tmp_path):
    """No room for a checkpoint, where the first process writes: it says so, and holds nobody up."""

    two = start_two(*SETTINGS, "--hidden-sizes", "256", "--mesh", "data=4", "--run-dir", tmp_path)
    resource.prlimit(two[0].pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    codes, said = ends(two, within=120)  # half a minute of it for the other's part of the checkpoint
    assert codes[0] == 1
    assert codes[1] != 0
    assert re.search(rf"train_mnist: checkpoint \d+ in {tmp_path / 'checkpoints'}: cannot be written", said[0])


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="orbax writes arrays on several devices by jax.set_mesh")
def test_one_of_two_is_told_to_stop(tmp_path, uninterrupted):
    run_dir = tmp_path / "run"
    two = start_two(*SETTINGS, "--mesh", "data=4", "--run-dir", run_dir)
    wait_for(two[0], (run_dir / "checkpoints" / "3").exists)
    two[1].send_signal(signal.SIGTERM)
    codes, said = ends(two)
    assert codes == [75, 75]
    assert "told to stop after" in said[0]
    assert "told to stop after" not in said[1]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["--mesh", "data=4", "--seed", "1"], ["--mesh", "data=4"], "were not all given what process 0 was: seed 1"),
        (["--mesh", "data=2"], ["--mesh", "data=2"], "--mesh is 'data=2', expected one over all 4 devices of the 2"),
        ([], [], "--mesh is '', expected one over all 4 devices of the 2 processes, such as data=4"),
    ],
)
def test_processes_that_do_not_fit_together(tmp_path, first, second, message):
    codes, said = ends(start_two(*SETTINGS[:-1], "inf", "--run-dir", tmp_path / "run", own=(first, second)))
    assert codes[0] == 1
    assert codes[1] != 0
    assert message in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "was", "now"), [("lr", "0.002", "0.003"), ("seed", "0", "1")])
def test_a_changed_configuration_is_noticed(tmp_path, uninterrupted, name, was, now):
    """It says how to go on, so it must be what it was; the checkpoint knows."""
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    text = (run_dir / "config.json").read_text()
    assert f'"{name}": {was}' in text
    (run_dir / "config.json").write_text(text.replace(f'"{name}": {was}', f'"{name}": {now}'))
    _, err = finish("--resume", run_dir, code=1)
    assert f"{run_dir / 'config.json'} was changed: {name} is {now}, but the run was saved with {was}" in err


def test_an_address_that_is_none():
    _, err = finish("--coordinator", "nonsense", "--processes", 2, "--process", 0, code=1)
    assert "--coordinator is 'nonsense', expected host:port or auto" in err
