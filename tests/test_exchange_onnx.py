"""Networks in ONNX files: ONNX Runtime is the oracle of what is written, and torch and scikit-learn of what is read."""

import io
import math
import os
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from exchanged import bits, close

import funcnet
from funcnet import Network, activations, exchange, losses

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `exchange`")
onnx = pytest.importorskip("onnx", reason="needs the extra `exchange`")
torch = pytest.importorskip("torch", reason="needs the extra `exchange`")


helper, nn = onnx.helper, torch.nn
ALL = (*activations.SHIPPED, activations.leaky_relu(1 / 3))
SIZES = (6, 9, 8, 4)
MINE = replace(losses.squared_error, name="mine")


def run(model, x):
    """What ONNX Runtime makes of a file or a model."""
    content = model.read_bytes() if hasattr(model, "read_bytes") else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def inputs(n=7, dtype=np.float32, n_in=6):
    return (np.random.default_rng(n).standard_normal((n, n_in)) * 3).astype(dtype)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


class TestWritten:
    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("act", ALL, ids=lambda act: act.name)
    def test_runs_as_predict_and_comes_back(self, path, act, dtype):
        """In every dtype and for every loss; one sample, and many."""
        params = oracle.network(0, SIZES, dtype)
        if act.name == "gelu" and dtype == np.float64:
            with pytest.raises(
                ValueError, match="layer 1: ONNX Runtime has no gelu in float64: write the network in f"
            ):
                exchange.to_onnx(path, params, Network(act))
            return
        for loss in losses.SHIPPED:
            network = Network((act, act), act if loss == losses.squared_error else activations.identity, loss)
            exchange.to_onnx(path, params, network)
            model, opset_20 = onnx.load(path), "gelu" in act.name and dtype == np.float32
            assert (model.opset_import[0].version, model.ir_version) == ((20, 9) if opset_20 else (7, 4))
            for n in (1, 7):
                x = inputs(n, dtype)
                got = run(path, x)
                assert got.dtype == dtype
                assert close(got, funcnet.predict(params, x, network), 1e-6 if dtype == np.float32 else 1e-14)
            again, same = exchange.from_onnx(path)
            assert bits(again) == bits(params)
            assert same == network
            # Also where nothing says what the network is: by operators and formulas alone.
            del model.metadata_props[:]
            again, read = exchange.from_onnx(model)
            assert bits(again) == bits(params)
            fs = (act, act, network.output) if act != activations.sigmoid else (act, act, activations.identity)
            if act == activations.leaky_relu(1 / 3) and dtype == np.float32:  # the operator's slope is a float32
                fs = [activations.leaky_relu(0.33333334) if f == act else f for f in fs]
            assert read.activations(3) == tuple(fs)
            at_the_end = act == activations.sigmoid and loss == losses.squared_error
            assert read.loss == (losses.sigmoid_cross_entropy if at_the_end else loss)

    def test_each_layer_has_its_own_activation(self, path):
        params, network = oracle.network(0, SIZES, np.float32), Network((activations.tanh, activations.silu))
        exchange.to_onnx(path, params, network)
        assert close(run(path, inputs()), funcnet.predict(params, inputs(), network), 1e-6)

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
    def test_half_precision_is_written_in_float32(self, path, dtype):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), oracle.network(0, SIZES, np.float64))
        exchange.to_onnx(path, params)
        assert close(run(path, inputs()), funcnet.predict(params, inputs()), 1e-6)
        again, _ = exchange.from_onnx(path)
        assert bits(again) == bits(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))

    @pytest.mark.usefixtures("x64")
    def test_infinities_and_tails(self, path):
        """Of formulas, too: in float64."""
        x = np.array([[-np.inf], [-1e300], [-800], [-40], [-1e-9], [0], [1e-9], [40], [800], [1e300], [np.inf]])
        for act in (activations.softplus, activations.elu, activations.leaky_relu(0.1)):
            params, network = [(np.ones((1, 1)), np.zeros(1))], Network(output=act, loss=losses.squared_error)
            exchange.to_onnx(path, params, network)
            np.testing.assert_allclose(run(path, x), act.fn(x), rtol=1e-15, atol=2e-16)

    def test_what_is_refused_leaves_the_file(self, path, monkeypatch):
        path.write_bytes(b"older")
        params = oracle.network(0, SIZES, np.float32)
        sin = funcnet.Activation("sin", jnp.sin, lambda z, a: jnp.cos(z))
        relu = replace(activations.relu, fn=jnp.abs)  # the name alone does not make it one
        for network, message in (
            (Network(loss=MINE), "loss is mine, expected one of softmax_cross_entropy"),
            (Network(sin), "layer 1: the activation is sin, which ONNX does not have"),
            (
                Network(relu),
                "layer 1: the activation is relu, which ONNX does not have; expected one of the shipped identity, relu",
            ),
            (Network(compute_dtype="float16"), "products in float16, which cannot be exported"),
            (Network((activations.relu,)), "hidden is a tuple of 1, expected an Activation or 2"),
        ):
            with pytest.raises(ValueError, match=message):
                exchange.to_onnx(path, params, network)
        large = [(np.broadcast_to(np.float32(0), (2**15, 2**15)), np.zeros(2**15, np.float32))]
        with pytest.raises(ValueError, match="params are 1,073,774,592 numbers, and an ONNX file holds less than 2 GB"):
            exchange.to_onnx(path, large)
        assert path.read_bytes() == b"older"
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            exchange.to_onnx(path.parent / "no" / "model.onnx", params)
        assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
        monkeypatch.setenv("HOME", str(path.parent))
        for name in ("~/home.onnx", b"~/bytes.onnx"):
            exchange.to_onnx(name, params)
            assert bits(exchange.from_onnx(os.fsdecode(name))[0]) == bits(params)


def exported(model, x, **settings):
    """A module of PyTorch as its older exporter writes it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), file, dynamo=False, **settings)
    return onnx.load_from_string(file.getvalue())


def chain(*nodes, n_in=6, n_out=4, dtype=onnx.TensorProto.FLOAT, opset=13, batch="N", more=(), shape=None):
    """A model of nodes `(operator, inputs, output[, settings])` from x to y, where an array may stand for an input."""
    made, constants = [], []
    for operator, ins, out, *settings in nodes:
        names = []
        for value in ins:
            name = value if isinstance(value, str) else f"c{len(constants)}"
            if not isinstance(value, str):
                constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
            names.append(name)
        made.append(helper.make_node(operator, names, [out], **dict(*settings)))
    x = helper.make_tensor_value_info("x", dtype, [batch, *(shape or [n_in])])
    ys = [helper.make_tensor_value_info(name, dtype, [batch, n_out]) for name in ("y", *more)]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(helper.make_graph(made, "g", [x], ys, constants), opset_imports=opsets, ir_version=8)


(W, b), (V, c) = oracle.network(1, (6, 8, 4), np.float32)
GEMM, LAST = ("Gemm", ["x", W, b], "z"), ("Gemm", ["a", V, c], "y")
OUT = ("Gemm", ["x", W, b], "o")


def between(*nodes, **settings):
    return chain(GEMM, *nodes, LAST, **settings)


def open_rank_3(axis, **settings):
    """A layer and a softmax at every step of `(N, T, 6)`."""
    softmax = ("Softmax", ["o"], "y", {} if axis is None else {"axis": axis})
    model = chain(("MatMul", ["x", W], "o"), softmax, shape=["T", 6], n_out=8, **settings)
    for value, n in ((model.graph.input[0], 6), (model.graph.output[0], 8)):
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, ["N", "T", n]))
    return model


# What others write, and the network that it is.
READ = {
    "transB": (chain(("Gemm", ["x", W.T.copy(), b], "z", {"transB": 1}), ("Tanh", ["z"], "a"), LAST),
               Network(activations.tanh)),
    "alpha and beta": (chain(("Gemm", ["x", W / 2, b * 4], "z", {"alpha": 2.0, "beta": 0.25}), ("Relu", ["z"], "a"),
                             LAST),
                       Network()),
    "MatMul and Add": (chain(("MatMul", ["x", W], "m"), ("Add", ["m", b], "z"), ("Relu", ["z"], "a"),
                             ("MatMul", ["a", V], "n"), ("Add", [c[None], "n"], "y")), Network()),
    "MatMul without Add": (chain(("MatMul", ["x", W], "z"), ("Sigmoid", ["z"], "a"), ("MatMul", ["a", V], "y")),
                           Network(activations.sigmoid)),
    "constants that are nodes": (
        chain(("Constant", [], "w", {"value": onnx.numpy_helper.from_array(W.T.copy())}), ("Transpose", ["w"], "wt"),
              ("Cast", ["wt"], "wc", {"to": 1}), ("Identity", [b], "bi"), ("Gemm", ["x", "wc", "bi"], "z"),
              ("Relu", ["z"], "a"), LAST), Network()),
    "what does nothing": (
        chain(("Flatten", ["x"], "f"), ("Gemm", ["f", W, b], "z"), ("Identity", ["z"], "i"),
              ("Dropout", ["i"], "d"), ("Relu", ["d"], "r"), ("Cast", ["r"], "a", {"to": 1}), LAST), Network()),
    "softmax": (chain(GEMM, ("Elu", ["z"], "a"), ("Gemm", ["a", V, c], "o"), ("Softmax", ["o"], "y", {"axis": -1})),
                Network(activations.elu)),
    "softmax of old": (chain(OUT, ("Softmax", ["o"], "y"), opset=9, n_out=8), Network()),
    "log-softmax": (chain(OUT, ("LogSoftmax", ["o"], "y"), n_out=8), Network()),
    "sigmoid": (chain(GEMM, ("Softplus", ["z"], "a"), ("Gemm", ["a", V, c], "o"), ("Sigmoid", ["o"], "y")),
                Network(activations.softplus, loss=losses.sigmoid_cross_entropy)),
    "LeakyRelu": (between(("LeakyRelu", ["z"], "a")), Network(activations.leaky_relu(0.01))),
    "PRelu of one slope": (between(("PRelu", ["z", np.float32([0.3])], "a")), Network(activations.leaky_relu(0.3))),
    "Clip": (between(("Clip", ["z", np.float32(0)], "a")), Network()),
    "Max": (between(("Max", [np.float32(0), "z"], "a")), Network()),
    "x sigmoid(x)": (between(("Sigmoid", ["z"], "s"), ("Mul", ["z", "s"], "a")), Network(activations.silu)),
    "log(1 + exp(x))": (between(("Exp", ["z"], "e"), ("Add", ["e", np.float32(1)], "f"), ("Log", ["f"], "a")),
                        Network(activations.softplus)),
    "gelu by erf": (
        chain(GEMM, ("Div", ["z", np.float32(math.sqrt(2))], "d"), ("Erf", ["d"], "e"),
              ("Add", ["e", np.float32(1)], "f"), ("Mul", ["z", "f"], "g"), ("Mul", ["g", np.float32(0.5)], "a"), LAST),
        Network(activations.gelu)),
    "Gelu": (between(("Gelu", ["z"], "a"), opset=20), Network(activations.gelu)),
    "an image": (chain(("Flatten", ["x"], "f", {"axis": 1}), ("Gemm", ["f", W, b], "y"), n_out=8, shape=[1, 2, 3]),
                 Network()),
    "a hundred samples": (chain(("Gemm", ["x", W, b], "y"), n_out=8, batch=100), Network()),
    "one sample alone": (chain(("Reshape", ["x", np.array([1, 6])], "f"), ("Gemm", ["f", W, b], "y"), n_out=8, batch=1),
                         Network()),
    "weights that are inputs": (chain(("MatMul", ["x", "W"], "y"), opset=8), Network()),
    "no units": (chain(("Gemm", ["x", np.ones((6, 0), "f"), np.ones(0, "f")], "z"), ("Tanh", ["z"], "a"),
                       ("Gemm", ["a", np.ones((0, 4), "f"), c], "y")), Network(activations.tanh)),
    "another output": (
        chain(OUT, ("Softmax", ["o"], "y"), ("ReduceMax", ["y"], "best", {"axes": [1]}), n_out=8, more=["best"]),
        Network()),
    "something unused": (between(("Sin", ["z"], "u"), ("Relu", ["z"], "a")), Network()),
}  # fmt: skip
_of_old = READ["weights that are inputs"][0]  # before IR version 4
_of_old.ir_version = 3
_of_old.graph.initializer.append(onnx.numpy_helper.from_array(V[:6], "W"))
_of_old.graph.input.append(helper.make_tensor_value_info("W", onnx.TensorProto.FLOAT, [6, 4]))

EXPECTED = ", expected layers, Gemm or MatMul and Add with constant weights"
# What is refused, and what is said.
REFUSED = {
    "residual": (chain(("Gemm", ["x", W[:, :6], b[:6]], "z"), ("Add", ["z", "x"], "y"), n_out=6), "node 1 is a Add"),
    "softmax between": (between(("Softmax", ["z"], "a")), "node 2 is a Gemm" + EXPECTED),
    "softmax over samples": (chain(OUT, ("Softmax", ["o"], "y", {"axis": 0})), "node 1 is a Softmax"),
    "softmax over steps": (
        open_rank_3(1), "node 1 is a Softmax over axis 1, which is not the last, or may not be, expected layers"),
    "softmax over all": (open_rank_3(None, opset=11), "node 1 is a Softmax over axis 1, which is not"),
    "softmax over one": (chain(("Gemm", ["x", W[:, :1], b[:1]], "o"), ("Softmax", ["o"], "y"), n_out=1),
                         "softmax_cross_entropy over one output is always 0"),
    "relu and a sigmoid": (chain(("Gemm", ["x", W, b], "z"), ("Relu", ["z"], "a"), ("Sigmoid", ["a"], "y"), n_out=8),
                           "sigmoid_cross_entropy takes logits, and output=relu"),
    "Elu of another alpha": (between(("Elu", ["z"], "a", {"alpha": 0.5})), "node 1 is a Elu, and Elu is none of"),
    "relu6": (between(("Clip", ["z", np.float32(0), np.float32(6)], "a")), "node 1 is a Clip, and Clip is none of"),
    "PRelu of several slopes": (
        between(("PRelu", ["z", np.linspace(0, 1, 8, dtype=np.float32)], "a")), "node 1 is a PRelu"),
    "another factor": (between(("Mul", ["z", np.float32(2)], "a")), "node 1 is a Mul, and Mul is none of"),
    "two activations": (between(("Relu", ["z"], "r"), ("Tanh", ["r"], "a")), "and Relu, Tanh is none of"),
    "Selu": (between(("Selu", ["z"], "a")), "node 1 is a Selu" + EXPECTED),
    "scaled inputs": (chain(("Mul", ["x", np.float32(2)], "s"), ("Gemm", ["s", W, b], "y")), "node 0 is a Mul before"),
    "another bias": (between(("Add", ["z", b], "a")), "node 1 is a Add, and Add is none of"),
    "transA": (chain(("Gemm", ["x", W, b], "y", {"transA": 1})), "node 0 is a Gemm" + EXPECTED),
    "attention": (chain(("Transpose", ["x"], "t"), ("MatMul", ["x", "t"], "y")), "node 0 is a Transpose"),
    "a dropout that trains": (between(("Dropout", ["z", np.float32(0.5), np.array(True)], "a")), "node 1 is a Dropout"),
    "half a product": (between(("Cast", ["z"], "h", {"to": 10}), ("Cast", ["h"], "a", {"to": 1})), "other outputs"),
    "no layer": (chain(("Relu", ["x"], "y")), "no output has a layer before it" + EXPECTED),
    "two outputs": (chain(GEMM, ("Relu", ["z"], "y"), more=["z"]), "several outputs, y, z: take one by onnx.utils.ext"),
    "convolution": (chain(("Conv", ["x", np.ones((2, 1, 1, 1), "f")], "y"), shape=[1, 2, 3]), "node 0 is a Conv"),
    "whole numbers": (chain(("MatMul", ["x", np.ones((6, 4), np.int64)], "y"), dtype=7), "dtype int64, expected one"),
    "float64": (chain(("MatMul", ["x", W.astype(np.float64)], "y"), dtype=11), "are float64, .* set jax_enable_x64"),
    "float8": (chain(("MatMul", ["x", W.astype(jnp.float8_e4m3fn)], "y"), dtype=17), "dtype float8_e4m3fn, expected"),
    "whole inputs": (chain(("Cast", ["x"], "f", {"to": 1}), ("MatMul", ["f", W], "y"), dtype=7), "input holds int64"),
    "another width": (chain(("MatMul", ["x", W], "y"), n_in=5), r"its input is \(N, 5\), expected 6 numbers per samp"),
    "widths": (chain(GEMM, ("Gemm", ["z", W, b], "y")), "layer 2: W has 6 rows, but layer 1 has 8 outputs"),
}  # fmt: skip


class TestRead:
    @pytest.mark.parametrize("name", READ)
    def test_computes_the_same(self, name, path):
        model, want = READ[name]
        onnx.save(model, path)
        params, network = exchange.from_onnx(str(path))
        loss = want.loss if "softmax" in name or name == "sigmoid" or name == "another output" else losses.squared_error
        assert network == replace(want, loss=loss)
        x = inputs({"one sample alone": 1, "a hundred samples": 100}.get(name, 7))
        theirs = run(model, x.reshape(-1, 1, 2, 3) if name == "an image" else x)
        theirs = np.exp(theirs) if name == "log-softmax" else theirs
        assert close(funcnet.predict(params, x, network), theirs, 1e-6)

    @pytest.mark.parametrize("name", REFUSED)
    def test_others_are_refused_by_name(self, name):
        model, message = REFUSED[name]
        with pytest.raises(ValueError, match=f"the model: .*{message}"):
            exchange.from_onnx(model)

    def test_softmax_at_every_step(self):
        params, network = exchange.from_onnx(open_rank_3(-1))
        x = inputs(6).reshape(2, 3, 6)
        assert network == Network()
        assert close(funcnet.predict(params, x, network), run(open_rank_3(-1), x), 1e-6)

    def test_gelu_by_tanh(self):
        model = between(("Gelu", ["z"], "a", {"approximate": "tanh"}), opset=20)
        if not hasattr(activations, "gelu_tanh"):
            with pytest.raises(ValueError, match="node 1 is a Gelu, and Gelu is none of"):
                exchange.from_onnx(model)
            return
        params, network = exchange.from_onnx(model)
        assert network == Network(activations.gelu_tanh, loss=losses.squared_error)
        assert close(funcnet.predict(params, inputs(), network), run(model, inputs()), 1e-6)

    @pytest.mark.parametrize(
        ("between", "network"),
        [
            (nn.ReLU(), Network()),
            (nn.LeakyReLU(0.2), Network(activations.leaky_relu(0.2))),
            (nn.GELU(), Network(activations.gelu)),  # of several operators, as is silu
            (nn.SiLU(), Network(activations.silu)),
        ],
    )
    def test_modules_as_pytorch_exports_them(self, between, network):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), between, nn.Dropout(), nn.Linear(9, 4), nn.Softmax(1))
        file = exported(model, torch.ones(2, 6), input_names=["x"], dynamic_axes={"x": {0: "N"}})
        params, read = exchange.from_onnx(file)
        assert read == network
        np.testing.assert_array_equal(params[0][0], model[1].weight.detach().numpy().T)
        theirs = model(torch.from_numpy(inputs())).detach()
        assert close(funcnet.predict(params, inputs(), read), theirs, 1e-6)

    def test_properties_that_say_something_else(self):
        """Another tool may have changed the model, and kept them."""
        model = between(("Tanh", ["z"], "a"))
        helper.set_model_props(model, {"funcnet": '{"hidden": "relu", "output": "identity", "loss": "squared_error"}'})
        with pytest.raises(ValueError, match=r"gives other outputs .* with Network\(loss=squared_error\): by"):
            exchange.from_onnx(model)
        for text in ("", "{", "[]", '{"hidden": "sin"}', "null"):
            helper.set_model_props(model, {"funcnet": text})
            assert exchange.from_onnx(model)[1] == Network(activations.tanh, loss=losses.squared_error)

    def test_functions_of_a_model(self):
        model = chain(("Gemm", ["x", W, b], "y"), n_out=8)
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("mine", 1)]
        nodes = [helper.make_node("Relu", ["u"], ["v"])]
        model.functions.append(helper.make_function("mine", "Bend", ["u"], ["v"], nodes, opsets[:1]))
        model.opset_import.append(opsets[1])
        model.graph.node[0].output[0] = "z"
        model.graph.node.append(helper.make_node("Bend", ["z"], ["y"], domain="mine"))
        assert exchange.from_onnx(model)[1] == Network(output=activations.relu, loss=losses.squared_error)
        del model.functions[:]
        with pytest.raises(ValueError, match="node 1 is a Bend"):
            exchange.from_onnx(model)

    def test_the_model_is_left_as_it_was(self):
        model = READ["constants that are nodes"][0]
        before = model.SerializeToString(deterministic=True)
        exchange.from_onnx(model)
        assert model.SerializeToString(deterministic=True) == before


class TestFiles:
    def test_weights_in_another_file(self, path):
        onnx.save(READ["transB"][0], path, save_as_external_data=True, location="weights", size_threshold=0)
        with pytest.raises(
            ValueError,
            match=r"model.onnx: its weights are in other files: read them, too, by from_onnx\(onnx.load\(path",
        ):
            exchange.from_onnx(path)
        params, _ = exchange.from_onnx(onnx.load(path))
        np.testing.assert_array_equal(params[0][0], W)

    def test_what_is_no_onnx_file(self, path):
        exchange.to_onnx(path, oracle.network(0, SIZES, np.float32))
        whole = path.read_bytes()
        for content in (b"", b"text, and no model", whole[: len(whole) // 2], whole[:-1], bytes(100), b"\x80\x04" * 50):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"model.onnx: "):
                exchange.from_onnx(path)
        os.truncate(path, 2**31)
        with pytest.raises(ValueError, match=r"model.onnx: not an ONNX file, which is a regular one of less than 2 GB"):
            exchange.from_onnx(path)
        with pytest.raises(ValueError, match=r"not an ONNX file, which is a regular one"):
            exchange.from_onnx(path.parent)
        os.mkfifo(path.parent / "pipe")
        with pytest.raises(ValueError, match=r"not an ONNX file, which is a regular one"):
            exchange.from_onnx(path.parent / "pipe")
        with pytest.raises(FileNotFoundError, match=r"no.onnx: there is no such file"):
            exchange.from_onnx(path.parent / "no.onnx")
        for model in (whole, None, nn.Linear(3, 2)):
            with pytest.raises(ValueError, match=r"expected a path or an onnx.ModelProto"):
                exchange.from_onnx(model)

    def test_damage_anywhere_is_noticed_or_harmless(self, path):
        """One byte changed: refused in words, or a network that computes what ONNX Runtime makes of the file."""
        exchange.to_onnx(path, oracle.network(0, (3, 2, 2), np.float32), Network(activations.tanh))
        whole, rng, x = path.read_bytes(), np.random.default_rng(0), inputs(n_in=3)
        read = 0
        for place in rng.permutation(len(whole))[:100]:
            damaged = bytearray(whole)
            damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                params, network = exchange.from_onnx(path)
            except ValueError as error:
                assert "model.onnx: " in str(error)  # noqa: PT017
                continue
            read += 1
            try:
                theirs = run(path, x)
            except Exception:  # ONNX Runtime asks for more, of names and shapes
                continue
            assert close(funcnet.predict(params, x, network), theirs, 1e-5) or not np.isfinite(theirs).all()
        assert 10 < read < 100
