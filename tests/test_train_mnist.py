"""The training script, as a function and as a command: what it leaves behind, and how it ends.

Interrupted processes are slow. Networks have the same few sizes throughout, so that most runs find their programs
compiled.
"""

import dataclasses
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import results
import train_mnist
from matplotlib import image
from mnist import data, processes, program, run_folder
from mnist import settings as run_settings
from mnist.recipes import RECIPES
from mnist.settings import Config, check, from_command_line
from train_mnist import train

import funcnet
from funcnet import Network, datasets, files, optimizers, products, training, weights
from funcnet.distortions import Distortion, upright

SCRIPT = Path(train_mnist.__file__)
PICTURES = {"confusion.png", "curves.png", "mistakes.png", "weights.png"}
FILES = {"config.json", "metrics.jsonl", "scores.json", "weights.safetensors"}


DRAW = train_mnist.draw


@pytest.fixture(scope="module", autouse=True)
def draws_nothing():
    """Pictures take longer than these runs; one test draws them, and so do the processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_mnist, "draw", lambda *_: None)
        yield


def with_setting(name, value):
    return json.dumps(json.loads(run_settings.as_json(Config())) | {name: value})


def digits(tmp_path, **changes):
    return Config(**({"dataset": "digits", "hidden_sizes": (32,), "epochs": 3, "run_dir": tmp_path / "run"} | changes))


# As many settings in one run as go together; what their kinds are, they survive in the run's config.json.
EVERYTHING = {
    "optimizer": "rmsprop", "schedule": "constant", "average": 0.5, "weight_limit": 2.0,
    "label_smoothing": 0.1, "dropout": 0.1, "ensemble": 2, "upright": (0.0, 1.5), "views": 2, "soft_finish": 0.5,
    "distortion": Distortion(rotation=5.0, alpha=5.0, sigma=2.0), "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def everything_and_keys(tmp_path_factory):
    """The run, and the keys that it split outside of a program, in order: each with those that came of it."""
    split, drawn = jax.random.split, []

    def recorded(key, *number):
        keys = split(key, *number)
        if not isinstance(keys, jax.core.Tracer):
            parent, children = (np.asarray(jax.random.key_data(a)) for a in (key, keys))
            drawn.append((bytes(parent), {*map(bytes, children)}))
        return keys

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "split", recorded)
        return train(digits(tmp_path_factory.mktemp("everything"), **EVERYTHING)), drawn


@pytest.fixture(scope="module")
def everything(everything_and_keys):
    return everything_and_keys[0]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run that has learnt something, with its pictures and the figures that they are of."""
    figures, write_picture = {}, run_folder.write_picture

    def save(path, figure):
        figures[path.name] = figure
        write_picture(path, figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_mnist, "draw", DRAW)
        patch.setattr(run_folder, "write_picture", save)
        result = train(digits(tmp_path_factory.mktemp("learnt"), epochs=20, lr=1e-2))
    return result, figures


def run(*arguments, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "FUNCNET_DATA"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
    )


def test_a_run_leaves_everything_behind(learnt):
    result, _ = learnt
    assert {path.name for path in result.run_dir.iterdir()} == FILES | PICTURES
    assert json.loads((result.run_dir / "scores.json").read_text())["scores"] == result.scores
    assert result.seconds["run"] == sum(row["seconds"] for row in result.history)
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert result.scores["test"]["accuracy"] >= 0.95
    assert {part: row["samples"] for part, row in result.scores.items()} == {
        "train": 1318,
        "validation": 119,
        "test": 360,
    }
    assert result.confusion.sum() == 360
    assert np.trace(result.confusion) / 360 == pytest.approx(result.scores["test"]["accuracy"])
    assert json.loads((result.run_dir / "config.json").read_text())["epochs"] == 20

    x, y = datasets.load_digits().test
    saved, network = weights.load(result.run_dir / "weights.safetensors")
    assert network == Network()
    assert training.evaluate(saved, x, y).accuracy == pytest.approx(result.scores["test"]["accuracy"])
    metadata = weights.load_metadata(result.run_dir / "weights.safetensors")
    assert (metadata["hidden"], metadata["upright"]) == ("relu", "no")
    table = train_mnist.report(result)
    for part in ("train", "validation", "recall, test", "compile", "samples/s", "weights.safetensors"):
        assert part in table


def test_the_pictures_show_the_run(learnt):
    """Of each, what is on it, and that the file is the picture."""
    result, figures = learnt
    assert figures.keys() == PICTURES
    for name, figure in figures.items():
        pixels = image.imread(result.run_dir / name)
        assert pixels.shape[:2] == tuple(np.round(figure.get_size_inches()[::-1] * 150).astype(int))
        assert len(np.unique((255 * pixels).astype(np.uint8).view(np.uint32))) > 10  # colours
    counts = np.zeros((10, 10), int)
    for text in figures["confusion.png"].axes[0].texts:
        predicted, true = text.get_position()
        counts[true, predicted] = int(text.get_text())
    np.testing.assert_array_equal(counts, result.confusion)
    lines = {(axes.get_ylabel(), line.get_label()): line for axes in figures["curves.png"].axes for line in axes.lines}
    for part in ("train", "validation"):
        loss, error = (lines[label, part].get_ydata() for label in ("mean loss (nats)", "error rate (%)"))
        np.testing.assert_allclose(loss, [row[f"{part}_loss"] for row in result.history])
        np.testing.assert_allclose(error, [100 * (1 - row[f"{part}_accuracy"]) for row in result.history])
    W = np.asarray(result.params[0][0])
    for axes in figures["weights.png"].axes:
        shown, unit = axes.images[0].get_array(), int(axes.get_title().removeprefix("unit "))
        np.testing.assert_allclose(shown.ravel(), W[:, unit])
    assert len(figures["weights.png"].axes) == 32
    mistakes = [axes for axes in figures["mistakes.png"].axes if axes.images]
    assert len(mistakes) == result.confusion.sum() - np.trace(result.confusion)
    x, y = datasets.load_digits().test
    said = [tuple(map(int, re.match(r"(\d)→(\d)", axes.get_title()).groups())) for axes in mistakes]
    assert sorted(said) == sorted((i, j) for i, j in np.ndindex(10, 10) if i != j for _ in range(counts[i, j]))
    for axes, (true, _) in zip(mistakes, said, strict=True):
        assert true in y[(x == axes.images[0].get_array().ravel()).all(1)]


def test_folds_hold_out_every_image_once(tmp_path):
    x, y = datasets.load_digits().train
    folds = [data.load(digits(tmp_path, validation=479, fold=fold)).parts for fold in (2, 1, 0)]
    for i, whole in ((0, x), (1, x), (2, y)):
        np.testing.assert_array_equal(np.concatenate([fold["validation"][i] for fold in folds]), whole)
    for k, fold in enumerate(folds):
        np.testing.assert_array_equal(fold["train"].images, np.concatenate([x[: 479 * k], x[479 * (k + 1) :]]))
        np.testing.assert_array_equal(fold["train"].labels, np.concatenate([y[: 479 * k], y[479 * (k + 1) :]]))


def test_same_seed_same_bits(tmp_path):
    runs = [
        train(digits(tmp_path, seed=seed, dropout=0.2, run_dir=tmp_path / str(i))) for i, seed in enumerate((5, 5, 6))
    ]
    leaves = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.params)] for run in runs]
    assert leaves[0] == leaves[1] != leaves[2]


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_products_of_the_faster_dtype(tmp_path, monkeypatch, faster):
    """And the run's configuration says which, so that it is repeated to the bit whatever the clock then says."""
    monkeypatch.setattr(products, "bfloat16_is_faster", lambda: faster == "bfloat16")
    chosen = train(digits(tmp_path, compute_dtype="auto"))
    assert run_settings.read(chosen.run_dir / "config.json").compute_dtype == faster
    given = train(digits(tmp_path, compute_dtype=faster, run_dir=tmp_path / "given"))
    jax.tree.map(np.testing.assert_array_equal, chosen.params, given.params)


def test_views_have_a_key_of_their_own(everything_and_keys):
    """It is drawn at the start, for them alone: no other keys come from it, and it is none of theirs."""
    (_, first), *others, (key, views) = everything_and_keys[1]
    assert len(first) == 3
    assert len(views) == 2
    assert key in first
    assert key not in {parent for parent, _ in others}
    assert not first & views


def test_everything_at_once(everything):
    """And the last epoch is one of a soft finish; so is the one before, of three, with half of them soft."""
    assert everything.history[-1]["train_loss"] <= 2.5
    assert everything.scores.keys() == {"train", "validation", "test", "test, averaged"}
    assert all(np.isfinite(row["loss"]) and row["loss"] <= 2.5 for row in everything.scores.values())
    config = run_settings.read(everything.run_dir / "config.json")
    assert [float(train_mnist.strength(config, number)) for number in (1, 2, 3)] == [1, 0.5, 0.5]


@pytest.mark.parametrize(
    "settings",
    [
        {
            "hidden_sizes": (), "optimizer": "sgd", "lr": 0.5, "validation": 0, "vat_radius": 1.0, "accumulate": 4,
            "batch_size": 5000,
        },
        {
            "hidden_sizes": (32, 16), "activation": "leaky_relu(0.1)", "optimizer": "adamw", "dropout": 0.1,
            "input_dropout": 0.1, "compute_dtype": "bfloat16", "upright": (0.0,),
            "mesh": "data=1", "test": False,
        },
    ],
    ids=["no hidden layer", "two hidden layers"],
)  # fmt: skip
def test_settings_together(tmp_path, settings):
    check_run(train(digits(tmp_path, **settings)), settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_sizes": (), "optimizer": "sgd", "lr": 0.5, "validation": 0},
        {"hidden_sizes": (32, 16), "activation": "leaky_relu(0.1)", "optimizer": "adamw", "dropout": 0.1},
        {"optimizer": "rmsprop", "schedule": "constant", "compute_dtype": "bfloat16", "input_dropout": 0.1},
        {"epochs": 1, "batch_size": 5000},
        {"vat_radius": 1.0, "weight_limit": 2.0, "label_smoothing": 0.1, "average": 0.9},
        {"distortion": Distortion(rotation=5.0, alpha=5.0, sigma=2.0), "ensemble": 2, "average": 0.9},
        {"dropout": 0.2, "upright": (0.0,), "mesh": "data=1"},
        {"ensemble": 2, "upright": (1.5,), "test": False},
        {"ensemble": 2, "upright": (0.0, 1.5), "views": 2, "distortion": Distortion(rotation=5.0)},
    ],
    ids=str,
)
def test_settings(tmp_path, settings):
    check_run(train(digits(tmp_path, **settings)), settings)


def check_run(result, settings):
    assert result.history[-1]["train_loss"] <= 2.5
    assert ("validation" in result.scores) == (settings.get("validation") != 0)
    assert ("test" in result.scores) == settings.get("test", True)


def test_the_average_is_what_is_saved_and_scored(tmp_path):
    """With a decay next to 1 it is the mean of all steps, and so behind the network itself."""
    result = train(digits(tmp_path, average=0.99999, epochs=5, lr=1e-2))
    assert result.history[-1]["train_accuracy"] > 0.9
    assert result.scores["train"]["loss"] > 1.2 * result.history[-1]["train_loss"]
    assert 0.7 < result.scores["test"]["accuracy"] < 0.9


def test_a_mesh_of_one_device_is_no_mesh(tmp_path):
    """The compiled epoch holds the same operations, as many of each."""

    def operations(mesh):
        config, key = digits(tmp_path, dropout=0.1, mesh=mesh), jax.random.key(0)
        epoch = program.compiled(program.build(config, data.load(config), key), key).epoch
        return Counter(re.findall(r" = .*? ([a-z][a-z-]*)\(", epoch.as_text()))

    assert operations("data=1") == operations("")
    assert operations("")["dot"] == 5


def test_what_lies_on_several_devices_is_not_saved_with_an_old_jax(tmp_path, monkeypatch):
    monkeypatch.delattr(jax, "set_mesh", raising=False)
    with pytest.raises(ValueError, match="--mesh data=2: orbax needs a newer jax than"):
        train(digits(tmp_path, mesh="data=2"))
    assert list(tmp_path.iterdir()) == []


def test_an_ensemble_is_its_networks_side_by_side(tmp_path):
    """Each network has weights of its own, and the ensemble scores by the mean of their probabilities."""
    result = train(digits(tmp_path, ensemble=3, epochs=10, lr=1e-2))
    names = [f"weights_{i}.safetensors" for i in (1, 2, 3)]
    assert {path.name for path in result.run_dir.iterdir()} == FILES - {"weights.safetensors"} | set(names)
    x, y = datasets.load_digits().test
    p = [funcnet.predict(weights.load(result.run_dir / name)[0], x.astype(np.float32) / 255) for name in names]
    assert not np.allclose(p[0], p[1])
    mean = np.mean(np.asarray(p, np.float64), 0)
    assert result.scores["test"]["accuracy"] == pytest.approx((mean.argmax(1) == y).mean())
    assert result.scores["test"]["loss"] == pytest.approx(-np.log(mean[np.arange(360), y]).mean(), rel=1e-4)


def test_each_of_an_ensemble_may_see_images_of_a_width_of_its_own(tmp_path):
    """What a run scores is what its weights, with the widths beside them, say of images made so by hand."""
    result = train(digits(tmp_path, ensemble=2, upright=(0.0, 1.2), epochs=10, lr=1e-2))
    x, y = datasets.load_digits().test
    upright_in_one = jax.jit(upright, static_argnames=("width", "image_shape"))
    p = []
    for i, width in ((1, None), (2, 1.2)):
        path = result.run_dir / f"weights_{i}.safetensors"
        assert weights.load_metadata(path)["upright"] == str(width or "own width")
        seen = np.asarray(upright_in_one(x, width=width, image_shape=(8, 8)))
        assert (seen != x).mean() > 0.1
        p.append(funcnet.predict(weights.load(path)[0], seen.astype(np.float32) / 255))
    mean = np.mean(np.asarray(p, np.float64), 0)
    assert result.scores["test"]["loss"] == pytest.approx(-np.log(mean[np.arange(360), y]).mean(), rel=1e-4)
    assert result.scores["test"]["accuracy"] > 0.9


@pytest.mark.parametrize("widths", [(), (0.0, 1.2)])
def test_an_ensemble_whose_loss_is_not_finite_names_the_step(widths, tmp_path):
    config = digits(tmp_path, ensemble=2, optimizer="sgd", lr=1e12, schedule="constant", upright=widths)
    with pytest.raises(FloatingPointError, match=r"in epoch 1, first at its step \d+, counted from 0"):
        train(config)
    assert {"weights_1.safetensors", "weights_2.safetensors"} <= {path.name for path in config.run_dir.iterdir()}


def test_a_run_is_repeated_from_its_config(tmp_path, everything):
    """Every kind of setting survives the file, and the weights come out with the same bits."""
    first = everything
    again = from_command_line(["--repeat", str(first.run_dir / "config.json"), "--run-dir", str(tmp_path / "again")])
    second = train(again)
    assert second.scores == first.scores
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again == dataclasses.replace(
        digits(tmp_path, **EVERYTHING),
        repeat=first.run_dir / "config.json",
        run_dir=tmp_path / "again",
    )


def test_recipes_are_starting_points():
    assert from_command_line([]) == Config()
    for name, recipe in RECIPES.items():
        config = from_command_line(["--recipe", name, "--seed", "7"])
        assert config.recipe == name
        assert config.seed == 7
        assert all(getattr(config, setting) == value for setting, value in recipe.settings.items())
        check(config)
    config = from_command_line(["--recipe", "distort", "--epochs", "1", "--distortion.shift", "2"])
    assert (config.epochs, config.distortion.shift, config.distortion.alpha) == (1, 2.0, 36.0)


def small(name, tmp_path, **changes):
    """A recipe on the small digits, for two epochs, with one small layer."""
    settings = {"dataset": "digits", "hidden_sizes": (32,), "epochs": 2, "validation": 119, "compute_dtype": "float32"}
    return Config(recipe=name, **(RECIPES[name].settings | settings | {"run_dir": tmp_path / "run"} | changes))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_program(name, tmp_path):
    """It is traced, as for compilation, and the state that comes out is one to go on with."""
    config, key = small(name, tmp_path), jax.random.key(0)
    check(config)
    built = program.build(config, data.load(config), key)
    state, metrics = jax.eval_shape(built.epoch, built.state, key, np.float32(1), *built.feed(key))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), built.state
    )
    assert metrics.loss.shape == (() if config.ensemble == 1 else (config.ensemble,))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "distort-large"])
def test_every_recipe_runs(name, tmp_path):
    result = train(small(name, tmp_path, compute_dtype=RECIPES[name].settings.get("compute_dtype", "float32")))
    assert np.isfinite(result.scores["test"]["loss"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not the configuration of a run: Expecting value"),
        ("[1]", "of a run of this version: list unknown or missing"),
        ('{"epochs": 3, "epoch": 3}', r"\['accumulate', 'activation', .*'epoch', .* unknown or missing"),
        (with_setting("epochs", "many"), "epochs is 'many', expected int"),
        (with_setting("lr", True), "lr is True, expected float"),
        (with_setting("optimizer", "lion"), "optimizer is 'lion', expected .*'adamw', 'rmsprop', 'sgd'"),
        (with_setting("hidden_sizes", [3, "4"]), r"hidden_sizes is \[3, '4'\], expected tuple"),
        (with_setting("upright", ["wide"]), r"upright is \['wide'\], expected tuple"),
        (with_setting("distortion", {"wobble": 1}), "distortion is {'wobble': 1}, expected Distortion"),
        ("\udcff", "not the configuration of a run"),
        ("[" * 200_000, "not the configuration of a run: maximum recursion depth"),
        ("9" * 6000, "not the configuration of a run: Exceeds the limit"),
        (" " * 10_000_001, "not the configuration of a run: it has 10,000,001 bytes"),
        (with_setting("lr", 10**400), r"lr is 10{99}\.\.\., expected float"),
    ],
)
def test_a_file_that_is_no_config_is_refused(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        from_command_line(["--repeat", str(path)])
    assert str(path) in str(caught.value)


def test_only_ordinary_files_are_read(tmp_path):
    """Nobody ever writes into the FIFO."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path}: not the configuration of a run: it is not an ordinary file"):
            from_command_line(["--repeat", str(path)])


def test_a_tilde_is_the_home_of_somebody(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    first = train(digits(tmp_path, epochs=1, run_dir=Path("~/run")))
    assert first.run_dir == tmp_path / "run"
    again = from_command_line(["--repeat", "~/run/config.json", "--run-dir", "~/again"])
    assert train(again).run_dir == tmp_path / "again"
    with pytest.raises(ValueError, match=r"~nobody-such: .*; \./~nobody-such is a folder of that name"):
        train(digits(tmp_path, run_dir="~nobody-such"))


def test_a_batch_of_more_than_all_images_is_one_of_all(tmp_path):
    """Not one of a thousand million fillers."""
    one, many = (
        train(digits(tmp_path, batch_size=size, run_dir=tmp_path / str(size))) for size in (1318, 1_000_000_000)
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)


@pytest.mark.parametrize(
    "settings",
    [
        {"average": 0.5},
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in ({}, {"ensemble": 2, "upright": (0.0, 1.5)}, {"mesh": "data=2,model=2"})
        ),
    ],
    ids=str,
)
def test_the_weights_of_the_best_epoch_are_kept(tmp_path, settings):
    """Which it is, NumPy says; they are those of a run of so many epochs."""
    settings = {"lr": 0.05, "schedule": "constant", "hidden_sizes": (32,), **settings}
    result = train(digits(tmp_path, epochs=100, patience=3, **settings))
    losses = [row["validation_loss"] for row in result.history]
    best = 1 + int(np.argmin(losses))
    assert result.epoch == best == len(losses) - 3 < 97
    assert min(losses[:best]) < min(losses[best:])
    until_then = train(digits(tmp_path, epochs=best, run_dir=tmp_path / "until then", **settings))
    jax.tree.map(np.testing.assert_array_equal, result.params, until_then.params)
    assert result.scores == until_then.scores
    assert json.loads((result.run_dir / "scores.json").read_text())["epoch"] == best
    assert f"the weights are those of epoch {best}" in train_mnist.report(result)


def test_patience_that_never_ends_keeps_the_best(tmp_path):
    """And a validation loss that is not finite is no better."""
    rows = [{"epoch": 1 + i, "validation_loss": loss} for i, loss in enumerate([3.0, np.nan, 1.0, 1.0, np.inf])]
    config = digits(tmp_path, patience=100)
    assert [train_mnist.best_epoch(config, rows[:n]) for n in range(6)] == [0, 1, 1, 3, 3, 3]
    assert train_mnist.best_epoch(config, rows[1:2]) == 0
    assert train_mnist.best_epoch(digits(tmp_path), rows) == 5


def test_predicting_from_a_run_in_one_call(everything, learnt):
    """Against the run's own scores, of an ensemble on upright images and of one network."""
    x, y = datasets.load_digits().test
    for run_dir in (everything.run_dir, learnt[0].run_dir):
        p = train_mnist.predict(run_dir, x)
        scores = json.loads((run_dir / "scores.json").read_text())["scores"]["test"]
        assert (p.argmax(1) == y).mean() == pytest.approx(scores["accuracy"])
        assert -np.log(p[np.arange(len(y)), y]).mean() == pytest.approx(scores["loss"], rel=1e-4)


def test_a_run_keeps_the_names_of_its_classes_and_goes_on_with_its_own_data_alone(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (60, 9), np.uint8), np.array(["ant", "bee", "cow"] * 20)
    np.savez(tmp_path / "own.npz", x=x, y=y)
    result = train(digits(tmp_path, dataset=str(tmp_path / "own.npz"), epochs=1))
    assert train_mnist.classes(result.run_dir) == ("ant", "bee", "cow")
    x[0, 0] ^= 1
    np.savez(tmp_path / "own.npz", x=x, y=y)
    with pytest.raises(ValueError, match=r"that run began with other data: checksum was \w{8} and is \w{8}"):
        train(run_settings.saved(result.run_dir))


def test_pictures_that_fail_do_not_fail_the_run(tmp_path, monkeypatch, capsys):
    def full(path, data, write=files.write_atomically):
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, "cannot be written: No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(files, "write_atomically", full)
    monkeypatch.setattr(train_mnist, "draw", DRAW)
    result = train(digits(tmp_path))
    assert {path.name for path in result.run_dir.iterdir()} == FILES
    assert f"pictures are missing: [Errno 28] cannot be written: No space left on device: '{result.run_dir}/" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("settings", [{}, {"patience": 100}])
def test_a_checkpoint_that_fails_leaves_the_weights(tmp_path, monkeypatch, settings):
    """Of the last whole epoch, where there is room for them."""

    def full(folder, number, tree, notes):
        (tmp_path / "run" / "checkpoints" / f"{number}.orbax-checkpoint-tmp").mkdir()
        raise OSError("checkpoint: cannot be written")

    monkeypatch.setattr(train_mnist.checkpoints, "save", full)
    with pytest.raises(OSError, match="checkpoint: cannot be written"):
        train(digits(tmp_path, checkpoint_every=0.0, schedule="constant", **settings))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    one = train(digits(tmp_path, epochs=1, schedule="constant", run_dir=tmp_path / "one"))
    kept, _ = weights.load(tmp_path / "run" / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, kept, one.params)


def test_two_runs_in_one_folder_are_noticed(tmp_path):
    """Until the first has ended; what a killed one left is in nobody's way."""
    config = digits(tmp_path, epochs=1)
    with run_folder.opened(config, "digits") as run_dir:
        with pytest.raises(BlockingIOError, match=rf"{run_dir}: another run uses it \(process {os.getpid()} on"):
            train(dataclasses.replace(config, resume=run_dir, run_dir=None))
        assert (run_dir / run_folder.LOCK).exists()
    assert {path.name for path in run_dir.iterdir()} == {"config.json"}
    (run_dir / run_folder.LOCK).write_text("process 1 on another planet")
    train(dataclasses.replace(config, resume=run_dir, run_dir=None))
    assert {path.name for path in run_dir.iterdir()} == FILES


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", none)
    train(digits(tmp_path, epochs=1))
    assert "No locks available: a second run in this folder would not be noticed" in capsys.readouterr().err


def test_results_are_means_over_the_seeds_of_a_setting(tmp_path):
    """Against NumPy; runs that differ in more than their seed are rows of their own."""
    runs = []
    for seed, epochs in ((0, 3), (1, 3), (2, 3), (0, 0)):
        config = digits(tmp_path, seed=seed, epochs=epochs, run_dir=tmp_path / f"{seed}-{epochs}")
        runs.append(train(config))
    lines = results.table([run.run_dir for run in runs]).splitlines()
    errors = [100 * (1 - run.scores["test"]["accuracy"]) for run in runs]
    assert len(lines) == 4
    assert f"{np.mean(errors[:3]):.2f} ± {np.std(errors[:3], ddof=1):.2f}% (3)" in lines[2]
    assert f"{errors[3]:.2f}% (1)" in lines[3]
    assert "| default | 64-32-10 | 2,410 | 3 |" in lines[2]


def test_results_of_what_was_held_out(tmp_path):
    runs = [
        train(digits(tmp_path, validation=479, fold=fold, test=False, run_dir=tmp_path / str(fold))) for fold in (0, 1)
    ]
    errors = [100 * (1 - run.scores["validation"]["accuracy"]) for run in runs]
    expected = f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}% (2, held out)"
    assert expected in results.table([run.run_dir for run in runs])


def test_what_is_no_whole_run_is_no_result(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        results.table([tmp_path])
    run = train(digits(tmp_path))
    scores = json.loads((run.run_dir / "scores.json").read_text())
    (run.run_dir / "scores.json").write_text(json.dumps(scores | {"interrupted": True}))
    with pytest.raises(ValueError, match="was interrupted"):
        results.table([run.run_dir])


def test_no_epoch_is_the_network_as_drawn(tmp_path):
    result = train(digits(tmp_path, epochs=0))
    assert result.history == []
    assert "weights.safetensors" in {path.name for path in result.run_dir.iterdir()}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"optimizer": "sgd", "lr": 1e12}, r"(nan|inf) in epoch 1, first at its step \d+, counted from 0"),
        # One step an epoch: its loss is still that of the good weights.
        ({"optimizer": "rmsprop", "lr": 3e38, "batch_size": 5000, "epochs": 1}, r"2\.\d+ in epoch 1, and then weights"),
        ({"optimizer": "rmsprop", "lr": 3e38, "batch_size": 5000, "epochs": 2}, r"2\.\d+ in epoch 1, and then weights"),
    ],
    ids=["loss", "weights after the last step", "weights before the last step"],
)
def test_what_is_not_finite_stops_the_run_with_the_last_good_weights(tmp_path, settings, what):
    config = digits(tmp_path, schedule="constant", **settings)
    lr = re.escape(f"{config.lr:g}")
    message = rf"the loss is {what}.*; the last good weights are in .*run; try a smaller --lr than {lr}"
    with pytest.raises(FloatingPointError, match=message):
        train(config)
    saved = weights.load(config.run_dir / "weights.safetensors")[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))


@pytest.fixture
def same_handlers():
    """Of signals, after the test as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_ends_the_process_only_where_nothing_is_lost(monkeypatch, same_handlers):
    """Before the first epoch and after the weights are saved; in between it is noted, however often it comes."""
    monkeypatch.setattr(processes, "leave", lambda: sys.exit(130))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked_to_stop, all_saved = processes.told_to_stop()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGINT)
    assert not asked_to_stop(0)
    for _ in range(3):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        asked_to_stop(1)
    signal.raise_signal(signal.SIGINT)
    all_saved()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGINT)


@contextmanager
def started(*arguments, **pipes):
    """The script as a process, which does not outlive a test that fails."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_ctrl_c_on_a_process(tmp_path):
    """As a command, interrupted in the middle of a run far too long to finish."""
    arguments = "--dataset", "digits", "--hidden-sizes", "32", "--epochs", "1000000", "--run-dir", tmp_path / "run"
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(*arguments, stdout=subprocess.PIPE) as process:
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    whole = len(metrics.read_text().splitlines())
    assert f"interrupted  after {whole} whole epochs, whose weights these are" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES | PICTURES | {"checkpoints"}  # to go on from


@pytest.mark.slow
def test_ctrl_c_before_training_leaves_nothing_behind(tmp_path):
    arguments = "--dataset", "digits", "--hidden-sizes", *["64"] * 40, "--run-dir", tmp_path / "run"
    with started(*arguments, stderr=subprocess.PIPE) as process:
        assert "training images" in process.stderr.readline()  # now it compiles
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "train_mnist: interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_was_learnt(tmp_path, monkeypatch, capsys, same_handlers):
    """The command, interrupted in the middle of a run far too long to finish."""
    write, rows = run_folder.write_metrics, []

    def write_and_interrupt(run_dir, history):
        write(run_dir, history)
        rows.append(len(history))
        if len(rows) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_folder, "write_metrics", write_and_interrupt)
    arguments = "--dataset", "digits", "--hidden-sizes", "32", "--epochs", "1000000", "--run-dir", tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train_mnist.py", *map(str, arguments)])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert train_mnist.main() == 130
    assert rows == [1, 2, 3, 3]
    assert "interrupted  after 3 whole epochs, whose weights these are" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES | {"checkpoints"}  # to go on from


def test_ctrl_c_in_the_first_epoch(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_mnist, "as_floats", interrupted)
    config, key = digits(tmp_path), jax.random.key(0)
    whole = data.load(config)
    state = training.init_state([(np.ones((2, 3), np.float32), np.ones(3, np.float32))], optimizers.sgd(0.1))
    never = program.build(config, whole, key)._replace(state=state, epoch=lambda *args: (None, None))
    with train_mnist.checkpoints.open_folder(tmp_path / "checkpoints") as folder:
        params, history, stopped = train_mnist.fit(
            config, whole, never, key, None, tmp_path, folder, lambda done: False
        )
    assert (history, stopped) == ([], True)
    np.testing.assert_array_equal(params[0][0], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0, expected at least 1"),
        ({"epochs": -1}, "--epochs is -1, expected at least 0"),
        ({"validation": 1437}, "--validation is 1437, expected fewer than the 1,437 training images"),
        ({"fold": 12}, "--fold is 12, expected less than 12, the number of parts of --validation 119 in the 1,437"),
        ({"fold": 1, "validation": 0}, "--fold is 1 and --validation is 0: hold some images out"),
        ({"fold": -1}, "--fold is -1, expected at least 0"),
        ({"activation": "swish"}, "unknown activation 'swish', expected one of"),
        ({"hidden_sizes": (-3,)}, "--hidden-sizes has -3, expected at least 1"),
        ({"upright": (-3.0,)}, r"--upright has -3\.0, expected a positive number of pixels, or 0 for"),
        (
            {"upright": (3.0, 4.0), "ensemble": 3},
            r"--upright has 2 widths, \(3\.0, 4\.0\), expected one, such as 0, or one",
        ),
        ({"views": 4}, "--views is 4 and --soft-finish 0.0, but without a --distortion all views and epochs are the"),
        ({"weight_decay": 0.3}, "--weight-decay is 0.3, a setting of --optimizer adamw, but the optimizer is adam"),
        ({"momentum": 5.0}, r"--momentum is 5.0, expected a number in \[0, 1\)"),
        ({"dropout": 1.0}, r"--dropout is 1.0, expected a number in \[0, 1\)"),
        ({"seed": 2**32}, "--seed is 4294967296, expected at most 4294967295"),
        ({"keep": 2**31}, "--keep is 2147483648, expected at most 2147483647"),
        ({"lr": float("inf")}, "--lr is inf, expected a finite number in the range of float32"),
        ({"vat_radius": 1e39}, r"--vat-radius is 1e\+39, expected a finite number"),
        ({"average": float("nan")}, "--average is nan, expected a finite number"),
        ({"upright": (float("inf"),)}, r"--upright\[0\] is inf, expected a finite number"),
        ({"distortion": Distortion(sigma=1e-9)}, "--distortion.sigma is 1e-09, expected at least a tenth of a pixel"),
        ({"distortion": Distortion(shift=float("inf"))}, "--distortion.shift is inf, expected a finite number"),
        ({"epochs": "3"}, "--epochs is '3', expected int"),
        ({"hidden_sizes": (2.5,)}, r"--hidden-sizes is \[2.5\], expected tuple\[int, ...\]"),
        ({"hidden_sizes": (2**54,)}, "--hidden-sizes has 18014398509481984, expected at most 9007199254740992"),
        # Of adam, three numbers for each weight, and the same once more for the epoch before.
        (
            {"hidden_sizes": (3 * 10**9,)},
            f"--hidden-sizes 3000000000: the weights .* take {24 * (75 * 3 * 10**9 + 10):,} bytes, and there are",
        ),
        ({"ensemble": 10**9}, "--hidden-sizes 32: the weights .* bytes, and there are"),
        ({"views": 10**9, "distortion": Distortion(shift=1.0)}, "--views 1000000000: .* take 14,400,000,000,000 bytes"),
        ({"epochs": 2**31 - 1}, "--epochs is 2147483647, expected at most 195225786: each has 11 steps"),
        ({"accumulate": 2000, "batch_size": 2000}, "--accumulate is 2000, expected at most the 1,318 training images"),
        ({"run_dir": Path("\udcff")}, "run folder \udcff: its name is not UTF-8, and checkpoints cannot be written"),
        ({"patience": 3, "validation": 0}, "--patience is 3 and --validation is 0: hold some images out"),
        (
            {"mesh": "data=8", "batch_size": 120, "accumulate": 2},
            "--batch-size is 120, expected a multiple of 16: --accumulate 2 times the 8 of --mesh data=8",
        ),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_leave_nothing_behind(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(digits(tmp_path, **settings))
    assert list(tmp_path.iterdir()) == []


def test_run_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name, message in {
        "full": "it exists and is not an empty folder; give another --run-dir",
        "file": "it exists and is not an empty folder",
        "file/run": "run folder .*file/run: cannot be written: .*Not a directory",
        "/proc/run": "run folder /proc/run: cannot be written",
    }.items():
        with pytest.raises(OSError, match=message):
            train(digits(tmp_path, run_dir=tmp_path / name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.txt"]


def test_without_mnist_it_says_so_in_one_line_and_takes_the_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FUNCNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "MIRRORS", ("http://127.0.0.1:9/",))
    result = train(digits(tmp_path, dataset="auto"))
    said = [line for line in capsys.readouterr().err.splitlines() if "MNIST was neither" in line]
    assert said == [
        "MNIST was neither found nor downloaded (2 places tried; funcnet.datasets.load_mnist() lists "
        "them): the small digits of scikit-learn take its place"
    ]
    assert result.scores["test"]["samples"] == 360
    with pytest.raises(FileNotFoundError, match="MNIST was neither found nor downloaded:\n  no train-images"):
        train(digits(tmp_path, dataset="mnist", run_dir=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_what_the_command_refuses(tmp_path, monkeypatch, capsys, same_handlers):
    """With a sentence and an exit code; and its help has every setting."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_mnist.py", *arguments])
        return train_mnist.main()

    assert command("--dataset", "digits", "--activation", "swish") == 1
    assert capsys.readouterr().err.startswith("train_mnist: unknown activation 'swish', expected one of")
    with pytest.raises(SystemExit) as ended:
        command("--epochs", "many")
    assert ended.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in Config.__dataclass_fields__)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path):
    """A run in a process of its own; what was trained with tanh there predicts with tanh here."""
    arguments = "--activation", "tanh", "--hidden-sizes", "32", "16", "--epochs", "10", "--lr", "1e-2"
    good = run("--dataset", "digits", *arguments, cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "accuracy" in good.stdout
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("digits-")
    assert {path.name for path in run_dir.iterdir()} == FILES | PICTURES
    params, network = weights.load(run_dir / "weights.safetensors")
    assert network == Network(funcnet.tanh)
    x, y = datasets.load_digits().test
    scores = json.loads((run_dir / "scores.json").read_text())["scores"]
    assert scores["test"]["accuracy"] > 0.9
    assert float(training.evaluate(params, x, y, network).accuracy) == pytest.approx(scores["test"]["accuracy"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what Linux shows")
def test_two_hundred_epochs_hold_what_twenty_do(tmp_path, caplog):
    """Memory, open files, compiled programs, with a checkpoint after each epoch."""
    held = []

    def count(done):
        if done in (20, 199):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            compiled = sum(record.getMessage().startswith("Compiling ") for record in caplog.records)
            files = [path for path in Path("/proc/self/fd").iterdir() if (tmp_path in path.resolve().parents)]
            held.append((compiled, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(files)))
        return False

    with jax.log_compiles():
        train(digits(tmp_path, epochs=200, checkpoint_every=0.0), count)
    (programs, megabytes, files), later = held
    assert programs > 0
    assert later[0] == programs
    assert later[1] < megabytes + 50
    assert later[2] <= files + 10  # those of the checkpoint that is being written


STREAMS = {
    "full": "> /dev/full",
    "closed": ">&-",
    "all closed": "<&- >&- 2>&-",
    "broken": "| true",
    "errors into a full one": "2> /dev/full",
    "errors broken": "2>&1 > /dev/null | true",
}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [*STREAMS, "full, closed"])
def test_standard_streams_that_fail(stream, tmp_path):
    """Full, closed, broken, or of too few characters for the path: the run is whole.

    Where there is no stream at all it draws its pictures too, which takes as long as all else.
    """
    into = STREAMS.get(stream, "> /dev/full 2>&-")
    without_pictures = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import train_mnist; "
        "train_mnist.draw = lambda *_: None; sys.exit(train_mnist.main())"
    )
    program = str(SCRIPT) if stream == "all closed" else f"-c {shlex.quote(without_pictures)}"
    command = f"set -o pipefail; {sys.executable} {program} --dataset digits --hidden-sizes 32 --run-dir ü {into}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    pictures = PICTURES if stream == "all closed" else set()
    assert {path.name for path in (tmp_path / "ü").iterdir()} == FILES | pictures


@pytest.mark.mnist
def test_the_main_command_s_defaults_on_one_epoch_of_mnist(mnist, tmp_path):
    result = train(Config(epochs=1, data_dir=os.environ["FUNCNET_DATA"], run_dir=tmp_path / "run"))
    assert {part: row["samples"] for part, row in result.scores.items()} == {
        "train": 55_000, "validation": 5_000, "test": 10_000}  # fmt: skip
    assert result.scores["test"]["accuracy"] >= 0.96
