"""Weights to a file and back, bit for bit, and files that are something else."""

import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from safetensors.numpy import save

import funcnet
from funcnet import io


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_round_trip_is_bit_exact(tmp_path, dtype, x64):
    path = tmp_path / "weights.safetensors"
    params = [(W.astype(dtype), b.astype(dtype)) for W, b in oracle.network(0, (6, 9, 4))]
    io.save_params(path, params, {"hidden": "relu"})
    loaded = io.load_params(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == b.tobytes()
    assert io.load_metadata(path) == {"format": "funcnet 1", "hidden": "relu"}


def test_fortran_order_and_strides_are_not_scrambled(tmp_path):
    params = oracle.network(0, (6, 9, 4), np.float32)
    io.save_params(tmp_path / "w", [(np.asfortranarray(W), np.repeat(b, 2)[::2]) for W, b in params])
    assert oracle.errors_in_eps(io.load_params(tmp_path / "w"), params) == [0.0] * 4


def test_float64_is_not_rounded_silently(tmp_path):
    io.save_params(tmp_path / "w", oracle.network(0, (6, 4), np.float64))
    with pytest.raises(ValueError, match=r"layer1\.W is float64, which JAX would round to float32: set jax_enable_x64"):
        io.load_params(tmp_path / "w")


W, B = np.ones((3, 2), np.float32), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"junk" * 100, "not a whole safetensors file"),
        (save({"layer1.W": W, "layer1.b": B})[:-1], "not a whole safetensors file"),
        (save({"layer1.W": W, "layer1.b": B}) + b"x", "not a whole safetensors file"),
        (b"\xff" * 8 + b"{}", "not a whole safetensors file"),
        (save({}), r"holds \[\], expected the tensors layer1.W, layer1.b"),
        (save({"weight": W, "bias": B}), r"holds \['bias', 'weight'\], expected the tensors layer1.W"),
        (save({"../../layer1.W": W, "layer1.b": B}), r"holds \['../../layer1.W', 'layer1.b'\], expected the tensors"),
        (save({"layer1.W": W, "layer2.b": B}), "expected the tensors layer1.W, layer1.b"),
        (save({"layer1.W": W, "layer1.b": W}), r"layer 1: W has shape \(3, 2\) and b \(3, 2\), expected"),
        (save({"layer1.W": W.astype(np.int32), "layer1.b": B}), "layer1.W has dtype I32, expected one of F16"),
        (save({"layer1.W": W, "layer1.b": B}, {"format": "funcnet 9"}), "the format 'funcnet 9', expected 'funcnet 1'"),
        (pickle.dumps([(W, B)]), "not a whole safetensors file"),
        (
            (1 << 62).to_bytes(8, "little") + b"{" * 64,
            "not a whole safetensors file",
        ),  # a huge header
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        io.load_params(path)


def test_another_architecture_is_refused_by_name(tmp_path):
    io.save_params(tmp_path / "w", [(W, B)])
    assert len(io.load_params(tmp_path / "w", sizes=(3, 2))) == 1
    with pytest.raises(ValueError, match="holds a network 3-2, expected 784-128-10"):
        io.load_params(tmp_path / "w", sizes=(784, 128, 10))


def test_what_is_no_network_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="params is a list of 0"):
        io.save_params(tmp_path / "w", [])
    with pytest.raises(ValueError, match=r"metadata\['epochs'\] is 3, expected text"):
        io.save_params(tmp_path / "w", oracle.network(0, (6, 4), np.float32), {"epochs": 3})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/no/w: there is no folder .*/no$"):
        io.save_params(tmp_path / "no" / "w", oracle.network(0, (6, 4), np.float32))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w"
    io.save_params(path, oracle.network(0, (6, 4), np.float32))
    before = path.read_bytes()

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=rf"cannot be written: No space left on device: '{path}'"):
        io.save_params(path, oracle.network(1, (6, 4), np.float32))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_saved_is_what_predicts(tmp_path):
    params = funcnet.init(jax.random.key(0), (6, 9, 4))
    io.save_params(tmp_path / "w", params, {"sizes": json.dumps([6, 9, 4])})
    x = jnp.ones((3, 6))
    np.testing.assert_array_equal(funcnet.predict(io.load_params(tmp_path / "w"), x), funcnet.predict(params, x))
