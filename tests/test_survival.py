"""Runs that are killed, told to stop or lose a process, and go on: the same weights to the last bit.

One process is told to stop; all else that a quick test needs happens in this one. Kills, Ctrl-C and several processes,
of which some die and the others have to notice, are slow.
"""

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
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest
import train_mnist
from mnist import processes
from mnist.settings import from_command_line
from train_mnist import train

from funcnet import weights

SCRIPT = Path(train_mnist.__file__)
STARTED = []
SETTINGS = ["--dataset", "digits", "--hidden-sizes", "64", "--epochs", "40", "--batch-size", "32", "--dropout", "0.1",
            "--checkpoint-every"]  # fmt: skip
OFTEN, SELDOM = [*SETTINGS, "0"], [*SETTINGS, "1e9"]  # each checkpoint takes longer than an epoch
# A step of two processes takes many times as long as one of one: they take fewer.
TWO = [*SETTINGS[:-1], "--batch-size", "128", "--mesh", "data=4"]
MESH = pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="orbax writes arrays on several devices by jax.set_mesh")
# The script, with less patience for others and without its pictures.
HASTY = """
import sys

sys.path.insert(0, {folder!r})
import train_mnist
from funcnet import checkpoints
from mnist import processes

processes.HEARTBEAT, checkpoints._WRITE_TIMEOUT = 5, 5
train_mnist.draw = lambda *_: None
sys.exit(train_mnist.main())
"""


def start(*arguments, devices=8, program=(str(SCRIPT),)):
    """The script as a process. Of the same number of devices, it computes the same bits as this one."""
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=8", f"device_count={devices}")
    precision = str(jax.config.jax_default_matmul_precision)  # decides the bits, and so --resume minds it
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_DEFAULT_MATMUL_PRECISION": precision}
    environment.pop("FUNCNET_DATA", None)
    command = [sys.executable, *program, *map(str, arguments)]
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


@pytest.fixture(scope="module", autouse=True)
def draws_nothing():
    """What this process trains; the pictures are looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_mnist, "draw", lambda *_: None)
        yield


def finish(*arguments, code=0, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def train_here(*arguments, **options):
    """The script's work in this process."""
    return train(from_command_line([*map(str, arguments)]), **options)


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
    train_here(*SELDOM, "--run-dir", run_dir)
    return run_dir


# What is left of a run with all its checkpoints, as `contents` shows it.
WHOLE = {(name,) for name in ("config.json", "metrics.jsonl", "scores.json", "weights.safetensors")}
WHOLE |= {(f"{name}.png",) for name in ("confusion", "curves", "mistakes", "weights")}
WHOLE |= {("checkpoints", number) for number in ("37", "38", "39")}


def wait_for(process, seen):
    """Until it can be seen, or the process has ended."""
    while process.poll() is None and not seen():
        time.sleep(0.001)


@pytest.fixture(scope="module")
def told_to_stop(tmp_path_factory):
    """The folder of a run that got a SIGTERM, how its process ended and what it said."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    process = start(*SELDOM, "--run-dir", run_dir)
    wait_for(process, (run_dir / "metrics.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    return run_dir, process.returncode, err


@pytest.mark.slow
def test_told_to_stop(tmp_path, told_to_stop, uninterrupted, capsys):
    """SIGTERM: a checkpoint, an exit code of its own, and what to type."""
    run_dir, code, err = told_to_stop
    assert code == 75, err
    epochs = int(re.search(rf"told to stop after (\d+) epochs; go on with --resume {run_dir}", err)[1])
    assert 1 <= epochs < 40
    assert {path.name for path in run_dir.iterdir()} == {"checkpoints", "config.json", "metrics.jsonl"}
    shutil.copytree(run_dir, tmp_path / "run")
    train_here("--resume", tmp_path / "run")
    assert f"continuing after {epochs} epochs" in capsys.readouterr().err
    assert bits_of(tmp_path / "run") == bits_of(uninterrupted)
    assert without_times(tmp_path / "run") == without_times(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "was", "now"), [("lr", "0.002", "0.003"), ("seed", "0", "1")])
def test_a_changed_configuration_is_noticed(tmp_path, told_to_stop, name, was, now):
    """It says how to go on, so it must be what it was; the checkpoint knows."""
    run_dir = tmp_path / "run"
    shutil.copytree(told_to_stop[0], run_dir)
    text = (run_dir / "config.json").read_text()
    assert f'"{name}": {was}' in text
    (run_dir / "config.json").write_text(text.replace(f'"{name}": {was}', f'"{name}": {now}'))
    message = rf"config\.json was changed: {name} is {now}, but the run was saved with {was}"
    with pytest.raises(ValueError, match=message):
        train_here("--resume", run_dir)


def test_what_a_kill_leaves(tmp_path, uninterrupted):
    """A folder as it is in the middle of a run: half a checkpoint, half a file, and fewer epochs saved than counted."""
    run_dir, killed = tmp_path / "run", tmp_path / "killed"

    def asked_to_stop(done):
        if done == 5:
            shutil.copytree(run_dir, killed, ignore=lambda _, names: [name for name in names if "tmp" in name])
        return done == 5

    with pytest.raises(processes.Preempted):
        train_here(*OFTEN, "--keep", "40", "--run-dir", run_dir, asked_to_stop=asked_to_stop)
    shutil.rmtree(killed / "checkpoints" / "5", ignore_errors=True)
    half = killed / "checkpoints" / "5.orbax-checkpoint-tmp-1700000000"
    shutil.copytree(killed / "checkpoints" / "4", half)
    shutil.rmtree(half / "tree")
    (killed / f".{'0123abcd' * 4}.funcnet-part").write_bytes(b"half")
    train_here("--resume", killed, "--checkpoint-every", "1e9")
    assert bits_of(killed) == bits_of(uninterrupted)
    assert without_times(killed) == without_times(uninterrupted)
    assert {path.name for path in killed.iterdir()} - {path.name for path in uninterrupted.iterdir()} == {"checkpoints"}
    assert not half.exists()


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("jax_enable_x64", True, "was False and is True: set JAX_ENABLE_X64=0"),
        ("jax_threefry_partitionable", False, "was True and is False: set JAX_THREEFRY_PARTITIONABLE=1"),
        ("jax_default_prng_impl", "rbg", "was 'threefry2x32' and is 'rbg': set JAX_DEFAULT_PRNG_IMPL=threefry2x32"),
        ("jax_default_matmul_precision", None, "was 'highest' and is None: set JAX_DEFAULT_MATMUL_PRECISION=highest"),
        ("jax_random_seed_offset", 1, "was 0 and is 1: set JAX_RANDOM_SEED_OFFSET=0"),
    ],
)
def test_a_flag_that_decides_the_bits_is_minded(uninterrupted, monkeypatch, flag, value, remedy):
    before = getattr(jax.config, flag)
    jax.config.update(flag, value)
    try:
        with pytest.raises(ValueError, match=f"--resume {uninterrupted}: since that run began, {flag} {remedy}"):
            train_here("--resume", uninterrupted)
    finally:
        jax.config.update(flag, before)


@pytest.mark.slow
def test_what_may_round_otherwise_is_said(tmp_path, told_to_stop, capsys):
    shutil.copytree(told_to_stop[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    kept = json.loads(path.read_text())
    kept["environment"] |= {"jax": "0.0.1", "device": "abacus"}
    path.write_text(json.dumps(kept))
    train_here("--resume", tmp_path / "run")
    assert (
        f"not the same to the last bit: since the run began, jax was '0.0.1' and is '{jax.__version__}', "
        f"device was 'abacus' and is '{jax.devices()[0].device_kind}'"
    ) in capsys.readouterr().err
    train_here("--repeat", path, "--epochs", "0", "--run-dir", tmp_path / "again")
    assert f"--repeat {path}: not the same to the last bit: since that run, jax was" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "after_the_best"),
    [
        (("--average", "0.5"), [2]),
        ((), [-1, 0, 4]),
        (("--ensemble", "2"), [2]),
        pytest.param(("--mesh", "data=2,model=2"), [2], marks=MESH),
    ],
)
def test_the_best_epoch_survives(tmp_path, settings, after_the_best):
    """A run that is stopped between its best epoch and its end knows which it was, and its weights."""
    arguments = [*SETTINGS, "1e9", "--lr", "0.05", "--schedule", "constant", "--patience", "4", *settings]
    whole = train_here(*arguments, "--run-dir", tmp_path / "whole")
    best, last = whole.epoch, len(whole.history)
    assert last == best + 4 < 40
    for after in after_the_best:
        run_dir, stop = tmp_path / str(after), best + after
        with pytest.raises(processes.Preempted) if stop < last else nullcontext():
            train_here(*arguments, "--run-dir", run_dir, asked_to_stop=lambda done, stop=stop: done == stop)
        again = train_here("--resume", run_dir)
        assert (again.epoch, without_times(run_dir)) == (best, without_times(tmp_path / "whole"))
        jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


@pytest.mark.slow
@MESH
def test_on_another_mesh(tmp_path, uninterrupted):
    """The first epochs on four devices, the rest on two others, or on one: the same run, to rounding."""
    run_dir = tmp_path / "run"
    with pytest.raises(processes.Preempted, match="told to stop after 10 epochs"):
        train_here(*SELDOM, "--mesh", "data=4", "--run-dir", run_dir, asked_to_stop=lambda done: done == 10)
    train_here("--resume", run_dir, "--mesh", "data=2,model=2")
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
        (["--hidden-sizes", "32"], r"hidden_sizes is \(32,\), but that run began with \(64,\)"),
        (["--seed", "1"], "seed is 1, but that run began with 0"),
        (["--recipe", "plain"], "--recipe, --repeat and --resume are ways to start; give one of them"),
        (["--run-dir", "elsewhere"], "continues in that folder; --run-dir is elsewhere"),
    ],
)
def test_another_run_is_refused(uninterrupted, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_here("--resume", uninterrupted, *arguments)


def test_nothing_to_go_on_from(tmp_path):
    message = f"--resume {tmp_path}: no run has begun there: there is no config.json in it"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        train_here("--resume", tmp_path)


def test_checkpoints_that_cannot_be_written(tmp_path, uninterrupted):
    (tmp_path / "checkpoints").write_text("in the way")
    shutil.copy(uninterrupted / "config.json", tmp_path)
    with pytest.raises(OSError, match=f"checkpoints in {tmp_path / 'checkpoints'}: the folder cannot be written"):
        train_here("--resume", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator", "nonsense", "--processes", 2, "--process", 0], "'nonsense', expected host:port or auto"),
        (["--coordinator", "127.0.0.1:1234", "--processes", 2], "host:port needs --processes and --process: how many"),
        (["--coordinator", "h:99999", "--processes", 2, "--process", 0], "'h:99999', expected host:port or auto"),
        (
            ["--coordinator", "h:1", "--processes", 2, "--process", 2],
            "--process is 2 and --processes 2, expected whole",
        ),
        (
            ["--coordinator", "h:1", "--processes", 2**40, "--process", 0],
            "and --processes 1099511627776, expected whole",
        ),
        (["--process", 0], "--processes and --process belong to --coordinator host:port"),
        (["--coordinator", "auto", "--processes", 2], "--processes and --process belong to --coordinator host:port"),
    ],
)
def test_an_address_that_is_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.join(from_command_line([*map(str, arguments)]))


@pytest.mark.parametrize("mesh", ["data=2", ""])
def test_a_mesh_has_to_take_in_all_processes(mesh, monkeypatch):
    """As it is said where two processes have met; the slow tests have two."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config = from_command_line(["--coordinator", "localhost:1", "--processes", "2", "--process", "0", "--mesh", mesh])
    with pytest.raises(ValueError, match=f"--mesh is '{mesh}', expected one over all 8 devices of the 2 processes"):
        processes.join(config)
    processes.join(from_command_line(["--coordinator", "localhost:1", "--processes", "2", "--process", "0",
                                      "--mesh", "data=8"]))  # fmt: skip


def test_what_differs_between_processes_is_named(monkeypatch):
    """Of two facts, the one that another process has otherwise."""
    gathered = []
    monkeypatch.setattr(processes, "process_allgather", lambda a: gathered.append(a) or np.stack([gathered[0], a]))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    processes.check_same({"seed": 0, "lr": 0.1})
    with pytest.raises(ValueError, match=r"not all processes have the same as process 0: seed 1$"):
        processes.check_same({"seed": 1, "lr": 0.1})


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, uninterrupted):
    """SIGKILL again and again: at the start, between epochs, while checkpoints and the last files are being written."""
    run_dir, rng = tmp_path / "run", random.Random(0)

    def half_written():
        return {path for path in run_dir.glob("checkpoints/*tmp*") if not path.name.isdecimal()}

    def last_files():
        return [path.stat().st_mtime_ns for path in run_dir.glob("*.safetensors")]

    def epochs():
        path = run_dir / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    killed = inside = 0
    for moment in ["start", "checkpoint", "epoch"] * 2 + ["end"] * 2:
        begun = (run_dir / "config.json").is_file()
        process = start(*(["--resume", run_dir] if begun else [*OFTEN, "--run-dir", run_dir]))
        old, before, more = half_written(), last_files(), epochs() + rng.randrange(1, 3)
        if moment == "start":
            until = time.monotonic() + rng.uniform(0, 3)
            wait_for(process, lambda until=until: time.monotonic() > until)
        elif moment == "checkpoint":  # as soon as one is half there
            wait_for(process, lambda old=old: half_written() - old)
        elif moment == "epoch":  # a little after some more
            wait_for(process, lambda more=more: epochs() >= more)
            time.sleep(rng.uniform(0, 0.05))
        else:  # as soon as the weights are there, and before the pictures are
            wait_for(process, lambda before=before: last_files() != before)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        inside += process.returncode == -signal.SIGKILL and bool(half_written() - old)
    assert killed >= 6
    assert inside >= 1
    finish("--resume", run_dir)
    assert bits_of(run_dir) == bits_of(uninterrupted)
    assert without_times(run_dir) == without_times(uninterrupted)
    assert contents(run_dir) == WHOLE
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"37", "38", "39"}  # and no empty folder


@pytest.mark.slow
def test_ctrl_c_can_be_taken_back(tmp_path, uninterrupted):
    """Once, while checkpoints are being written: the weights of the last whole epoch, and a checkpoint."""
    run_dir = tmp_path / "run"
    process = start(*OFTEN, "--run-dir", run_dir)
    wait_for(process, (run_dir / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert [path for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal()]
    assert (run_dir / "weights.safetensors").exists()
    train_here("--resume", run_dir)
    assert bits_of(run_dir) == bits_of(uninterrupted)
    assert contents(run_dir) == WHOLE


@pytest.mark.slow
def test_impatient_people(tmp_path):
    """Ctrl-C twice: the weights of the last whole epoch, and a checkpoint. Of SIGTERM twice, a checkpoint."""
    rng = random.Random(0)
    twice, term, mixed = (signal.SIGINT,) * 2, (signal.SIGTERM,) * 2, (signal.SIGINT, signal.SIGTERM)
    for i, sent in enumerate([twice, twice, mixed, term]):
        run_dir = tmp_path / str(i)
        process = start(*(OFTEN if i % 2 else SELDOM), "--epochs", 1000000, "--run-dir", run_dir)
        wait_for(process, (run_dir / "metrics.jsonl").exists)
        time.sleep(rng.uniform(0, 0.3))
        for number in sent:
            process.send_signal(number)
            time.sleep(rng.uniform(0.01, 0.3))
        _, err = process.communicate(timeout=100)
        assert process.returncode == (75 if sent == term else 130), err
        assert "Traceback" not in err
        assert [path for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal()]
        assert (run_dir / "weights.safetensors").exists() == (sent != term)


@pytest.mark.slow
def test_a_killed_run_holds_nobody_up(tmp_path, capsys):
    run_dir = tmp_path / "run"
    process = start(*OFTEN, "--epochs", 1000000, "--run-dir", run_dir)
    wait_for(process, (run_dir / "checkpoints" / "2").exists)
    in_use = f"run folder {run_dir}: another run uses it (process {process.pid} on"
    with pytest.raises(BlockingIOError, match=re.escape(in_use)):
        train_here("--resume", run_dir, asked_to_stop=lambda done: True)
    process.kill()
    process.communicate()
    with pytest.raises(processes.Preempted):
        train_here("--resume", run_dir, asked_to_stop=lambda done: True)
    assert "continuing after" in capsys.readouterr().err


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_two(*arguments, own=((), ())):
    """Two processes of two devices, each with arguments of its own."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(*arguments, *own[i], "--coordinator", address, "--processes", 2, "--process", i, devices=2,
              program=("-c", HASTY.format(folder=str(SCRIPT.parent))))
        for i in range(2)
    ]  # fmt: skip


@pytest.mark.slow
@MESH
@pytest.mark.parametrize(
    ("victim", "sent"),
    [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGINT)],
)
def test_a_process_that_dies_stops_the_others(tmp_path, capsys, victim, sent):
    """With an error and in bounded time; then the run goes on, in two processes or in one."""
    run_dir = tmp_path / "run"
    two = start_two(*TWO, "--checkpoint-every", "0", "--run-dir", run_dir)
    wait_for(two[0], (run_dir / "checkpoints" / "3").exists)
    two[victim].send_signal(sent)
    two[victim].communicate(timeout=10)
    assert two[victim].returncode == (130 if sent == signal.SIGINT else -sent)
    _, err = two[1 - victim].communicate(timeout=60)
    assert two[1 - victim].returncode != 0
    assert re.search("(?i)heartbeat|unavailable|connection|peer", err)
    if victim:
        train_here("--resume", run_dir, "--mesh", "", "--checkpoint-every", "1e9")
        assert re.search(r"continuing after \d+ epochs", capsys.readouterr().err)
    else:
        two = start_two("--resume", run_dir, "--mesh", "data=4", "--checkpoint-every", "1e9")
        results = [process.communicate(timeout=120) for process in two]
        assert [process.returncode for process in two] == [0, 0], results
        assert re.search(r"continuing after \d+ epochs", results[0][1])
        assert "accuracy" in results[0][0]
        assert "accuracy" not in results[1][0]  # the other one prints; here are lines of gloo, whole or torn
    train_here(*TWO, "--mesh", "", "--checkpoint-every", "1e9", "--run-dir", tmp_path / "whole")
    ours, theirs = without_times(run_dir), without_times(tmp_path / "whole")
    np.testing.assert_allclose([r["train_loss"] for r in ours], [r["train_loss"] for r in theirs], rtol=1e-3)
    assert len(ours) == 40


def ends(processes, *, within=60):
    """The exit codes and what was said, of processes that end by themselves."""
    said = [process.communicate(timeout=within)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.slow
@MESH
def test_an_error_in_one_process_ends_all(tmp_path):
    """No room for a checkpoint, where the first process writes: it says so, and holds nobody up."""

    two = start_two(*TWO, "--checkpoint-every", "0", "--hidden-sizes", "256", "--run-dir", tmp_path)
    resource.prlimit(two[0].pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    codes, said = ends(two, within=120)
    assert codes[0] == 1
    assert codes[1] != 0
    assert re.search(rf"train_mnist: checkpoint \d+ in {tmp_path / 'checkpoints'}: cannot be written", said[0])


@pytest.mark.slow
@MESH
def test_one_of_two_is_told_to_stop(tmp_path):
    run_dir = tmp_path / "run"
    two = start_two(*TWO, "--checkpoint-every", "0", "--run-dir", run_dir)
    wait_for(two[0], (run_dir / "checkpoints" / "3").exists)
    two[1].send_signal(signal.SIGTERM)
    codes, said = ends(two)
    assert codes == [75, 75]
    assert "told to stop after" in said[0]
    assert "told to stop after" not in said[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ["--mesh", "data=4", "--seed", "1"],
            ["--mesh", "data=4"],
            "not all processes have the same as process 0: seed 1",
        ),
        # Each says it of its own mesh, the second one if the end of the first has not ended it.
        (["--mesh", "data=2"], [], "--mesh is 'data=2', expected one over all 4 devices of the 2 processes, such as"),
    ],
)
def test_processes_that_do_not_fit_together(tmp_path, first, second, message):
    codes, said = ends(start_two(*SETTINGS, "inf", "--run-dir", tmp_path / "run", own=(first, second)))
    assert codes[0] == 1
    assert codes[1] != 0
    assert message in said[0]
    assert not (tmp_path / "run").exists()
