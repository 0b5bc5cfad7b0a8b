"""Networks of PyTorch, scikit-learn and ONNX Runtime, imported and exported: those libraries are the oracle."""

import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import export
from sklearn.neural_network import MLPClassifier, MLPRegressor

import funcnet
from funcnet import Network, activations, exchange, losses

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `exchange`")
torch = pytest.importorskip("torch", reason="needs the extra `exchange`")

nn = torch.nn
ALL = (*activations.SHIPPED, activations.leaky_relu(0.25))
SIZES = (6, 9, 8, 4)
MINE = replace(losses.squared_error, name="mine")


def close(a, b, tolerance):
    """Whether two arrays agree relative to the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.abs(a - b).max() <= tolerance * np.abs(b).max()


def bits(params):
    return [(leaf.dtype, leaf.shape, np.ascontiguousarray(leaf).tobytes()) for leaf in jax.tree.leaves(params)]


def module(seed=0, sizes=SIZES, nonlinearity=torch.nn.ReLU, **settings):
    torch.manual_seed(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [torch.nn.Linear(n_in, n_out, **settings), nonlinearity()]
    return torch.nn.Sequential(*layers[:-1])


class TestTorch:
    def test_outputs_gradients_and_ten_steps(self):
        model = module(sizes=(20, 32, 16, 5))
        params, network = exchange.from_torch(model)
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((64, 20), np.float32), rng.integers(0, 5, 64, dtype=np.int32)
        x_torch, y_torch = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
        assert close(funcnet.forward(params, x, network), model(x_torch).detach(), 1e-6)

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x_torch), y_torch).backward()
            grads = funcnet.backward(params, x, y, network)
            if step == 0:
                theirs = [leaf.grad.T if leaf.ndim == 2 else leaf.grad for leaf in model.parameters()]
                for ours, g in zip(jax.tree.leaves(grads), theirs, strict=True):
                    assert close(ours, g, 1e-5)
            optimizer.step()
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        for ours, p in zip(jax.tree.leaves(params), jax.tree.leaves(exchange.from_torch(model)[0]), strict=True):
            assert close(ours, p, 1e-5)

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_there_and_back_bit_for_bit(self, dtype):
        model = module(dtype=dtype)
        params, network = exchange.from_torch(model)
        back = exchange.to_torch(params, network)
        for name, tensor in model.state_dict().items():
            assert back.state_dict()[name].dtype == dtype
            assert torch.equal(back.state_dict()[name], tensor)
        again, same = exchange.from_torch(back.state_dict(), network)
        assert bits(again) == bits(params)
        assert same is network

    @pytest.mark.parametrize("act", ALL, ids=lambda act: act.name)
    def test_an_exported_network_computes_the_same(self, act):
        params = oracle.network(0, SIZES, np.float32)
        x = np.random.default_rng(1).standard_normal((7, 6), np.float32) * 4
        network = Network(act, output=act)
        model = exchange.to_torch(params, network)
        assert close(model(torch.from_numpy(x)).detach(), funcnet.forward(params, x, network), 2e-6)
        back, read = exchange.from_torch(model)
        assert bits(back) == bits(params)
        assert read.activations(3) == network.activations(3)

    def test_weights_are_copies(self):
        model = module()
        params, _ = exchange.from_torch(model)
        before = bits(params)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert bits(params) == before

    def test_a_layer_without_bias_gets_one_of_zeros(self):
        params, _ = exchange.from_torch(module(bias=False))
        assert [b.shape for _, b in params] == [(9,), (8,), (4,)]
        assert all((b == 0).all() for _, b in params)

    def test_one_linear_layer_is_a_network(self):
        params, network = exchange.from_torch(torch.nn.Linear(3, 2))
        assert [W.shape for W, _ in params] == [(3, 2)]
        assert network == Network()  # without hidden layers all are one

    @pytest.mark.parametrize(
        ("between", "network"),
        [
            ((nn.Tanh(), nn.Tanh()), Network(activations.tanh)),  # one for all, where it is the same
            ((nn.Tanh(), nn.LeakyReLU(0.3), nn.Sigmoid()),
             Network([activations.tanh, activations.leaky_relu(0.3)], activations.sigmoid)),
            ((nn.LeakyReLU(), nn.Identity()), Network([activations.leaky_relu(), activations.identity])),
            ((nn.Sequential(nn.SiLU(), nn.Dropout(0.5)), nn.ELU()), Network([activations.silu, activations.elu])),
            ((nn.GELU(), nn.Softplus(), nn.Dropout()), Network([activations.gelu, activations.softplus])),
        ],
    )  # fmt: skip
    def test_the_activations_are_read_layer_by_layer(self, between, network):
        torch.manual_seed(0)
        pairs = zip([nn.Linear(i, o) for i, o in pairwise(SIZES)], [*between, nn.Identity()][:3], strict=True)
        model = nn.Sequential(nn.Flatten(), *(part for pair in pairs for part in pair))
        params, read = exchange.from_torch(model)
        assert read == network
        x = np.random.default_rng(1).standard_normal((7, 6), np.float32)
        assert close(funcnet.forward(params, x, read), model.eval()(torch.from_numpy(x)).detach(), 2e-6)

    def test_a_module_that_calls_activations_as_functions_needs_a_network(self):
        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 4)

            def forward(self, x):
                return self.last(nn.functional.tanh(self.first(x)))

        torch.manual_seed(0)
        model, network = Functional(), Network([activations.tanh])
        message = (
            r"the module gives other outputs .* with Network\(hidden=identity\): by .*"
            r"from_torch\(model, Network\(...\)\) says which"
        )
        with pytest.raises(ValueError, match=message):
            exchange.from_torch(model)
        params, same = exchange.from_torch(model, network)
        assert same is network
        x = np.random.default_rng(1).standard_normal((7, 6), np.float32)
        assert close(funcnet.forward(params, x, network), model(torch.from_numpy(x)).detach(), 2e-6)
        with pytest.raises(ValueError, match=r"other outputs .* with Network\(\): by"):
            exchange.from_torch(model, Network())  # another than it calls
        with pytest.raises(ValueError, match="hidden is a tuple of 2, expected an Activation or 1 of them"):
            exchange.from_torch(model, Network([activations.tanh] * 2))

    def test_a_state_dict_needs_a_network(self):
        with pytest.raises(ValueError, match=r"holds weights and no activations: from_torch\(state, Network\(...\)\)"):
            exchange.from_torch(module().state_dict())

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.Sequential(nn.Conv2d(1, 2, 3)), "0 is a Conv2d, expected torch.nn.Linear layers, each followed by at "),
            (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "1 is a BatchNorm1d, expected"),
            (nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2)), "1 is a Softmax, expected"),
            (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False)), "1 is a LayerNorm, expected"),
            (nn.Sequential(nn.Linear(3, 4), nn.MaxPool1d(2), nn.Linear(2, 2)), "1 is a MaxPool1d, expected"),
            (nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)), "1 is a PReLU, expected"),
            (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Tanh()), "2 is a Tanh, expected"),
            (nn.Sequential(nn.Tanh(), nn.Linear(3, 4)), "0 is a Tanh, expected"),
            (nn.Bilinear(3, 3, 2), "model is a Bilinear, expected"),
            (nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), "layer 2: W has 5 rows, but layer 1"),
            (nn.Linear(3, 2, dtype=torch.float64), "weight is float64, which JAX would round to float32"),
        ],
    )
    def test_other_modules_are_refused_by_name(self, model, message):
        with pytest.raises(ValueError, match=message):
            exchange.from_torch(model)

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({"0.weight": torch.ones(2, 3, 4)}, r"0.weight has shape \(2, 3, 4\), expected the weight"),
            ({"0.scale": torch.ones(2)}, r"0.scale has shape \(2,\), expected the weight"),
            ({}, "params is .*expected a list"),
        ],
    )
    def test_other_state_dicts_are_refused_by_name(self, state, message):
        with pytest.raises(ValueError, match=message):
            exchange.from_torch(state, Network())

    def test_what_computes_something_else_is_refused(self):
        """Its parts are all known, but not what it does with them."""

        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))

            def forward(self, x):
                return x + self.layers(x)

        class Backwards(nn.Module):
            def __init__(self):
                super().__init__()
                self.last, self.first, self.between = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()

            def forward(self, x):
                return self.last(self.between(self.first(x)))

        class Cut(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(6, 6)

            def forward(self, x):
                return self.layer(x)[:, :3]

        torch.manual_seed(0)
        models = [
            Residual(),
            Backwards(),
            Cut(),
            nn.Sequential(nn.Linear(6, 9), nn.GELU("tanh"), nn.Linear(9, 4)),
            nn.Sequential(nn.Linear(6, 9), nn.ELU(0.5), nn.Linear(9, 4)),
            nn.Sequential(nn.Linear(6, 9), nn.Softplus(2.0), nn.Linear(9, 4)),
        ]
        for model in models:
            with pytest.raises(
                ValueError, match="on random inputs the module gives other outputs than its layers, one"
            ):
                exchange.from_torch(model)

    def test_an_unknown_activation_is_refused_by_name(self):
        mine = funcnet.Activation("relu", lambda z: z, lambda z, a: z)  # the name alone does not make it one
        for to in (exchange.to_torch, partial(exchange.to_onnx, "unused")):
            with pytest.raises(ValueError, match=r"layer 1: the activation is relu, of which .* knows nothing"):
                to(oracle.network(0, SIZES, np.float32), Network(mine))


SKLEARN = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid", "identity": "identity"}


def sklearn_data(kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 6))
    return x, {
        "binary": rng.integers(0, 2, 60),
        "multi-class": np.array(["a", "b", "c"])[np.arange(60) % 3],
        "multi-label": rng.integers(0, 2, (60, 4)),
        "one value": np.sin(x[:, 0]),
        "several values": np.sin(x[:, :3]),
    }[kind]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # 20 iterations are enough to have weights
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("theirs", SKLEARN)
@pytest.mark.parametrize("kind", ["binary", "multi-class", "multi-label", "one value", "several values"])
class TestSklearn:
    def fitted(self, kind, theirs):
        make = MLPRegressor if "value" in kind else MLPClassifier
        x, y = sklearn_data(kind)
        return make(hidden_layer_sizes=(8, 5), activation=theirs, max_iter=20, random_state=0).fit(x, y), x

    def predictions(self, estimator, x):
        p = estimator.predict_proba(x) if hasattr(estimator, "predict_proba") else estimator.predict(x)
        return p[:, 1:] if getattr(estimator, "out_activation_", "") == "logistic" and p.shape[1] == 2 else p

    def test_a_fitted_estimator_predicts_the_same(self, kind, theirs):
        estimator, x = self.fitted(kind, theirs)
        loss = {"binary": losses.sigmoid_cross_entropy, "multi-class": losses.softmax_cross_entropy,
                "multi-label": losses.sigmoid_cross_entropy}.get(kind, losses.squared_error)  # fmt: skip
        want = self.predictions(estimator, x).reshape(len(x), -1)
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
            params, network = exchange.from_sklearn(estimator, dtype=dtype)
            assert network == Network(activations.from_name(SKLEARN[theirs]), loss=loss)
            assert params[0][0].dtype == dtype
            got = np.asarray(funcnet.predict(params, x.astype(dtype), network))
            assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())

    def test_there_and_back(self, kind, theirs):
        estimator, x = self.fitted(kind, theirs)
        params, network = exchange.from_sklearn(estimator, dtype=np.float64)
        classes = estimator.classes_ if kind in ("binary", "multi-class") else None
        back = exchange.to_sklearn(params, network, classes=classes)
        again, same = exchange.from_sklearn(back, dtype=np.float64)
        assert bits(again) == bits(params)
        assert same == network
        np.testing.assert_array_equal(back.predict(x), estimator.predict(x))
        np.testing.assert_array_equal(self.predictions(back, x), self.predictions(estimator, x))


class TestWhatSklearnHasNot:
    params = oracle.network(0, SIZES, np.float32)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"network": Network(activations.silu)},
                "layer 1: the activation is silu, of which scikit-learn knows nothing",
            ),
            (
                {"network": Network((activations.relu, activations.tanh))},
                r"are \['relu', 'tanh'\], scikit-learn has one",
            ),
            ({"network": Network(output=activations.tanh)}, "the output activation is tanh, scikit-learn has none but"),
            ({"network": Network(loss=MINE)}, "loss is mine, expected one of softmax"),
            ({"network": activations.tanh}, "network is tanh of type Activation, expected a Network"),
            ({"classes": [3, 2, 1, 0]}, "classes are .*, expected 4, ascending"),
            ({"classes": [0, 1]}, "classes are .*, expected 4, ascending"),
            (
                {"classes": [1, 2, 3, 4], "network": Network(loss=losses.sigmoid_cross_entropy)},
                "several labels at once scikit-learn has 0 to 3",
            ),
        ],
    )
    def test_is_refused_by_name(self, settings, message):
        with pytest.raises(ValueError, match=message):
            exchange.to_sklearn(self.params, **settings)

    def test_softmax_over_two(self):
        with pytest.raises(ValueError, match="softmax over 2 outputs: scikit-learn has one logistic output"):
            exchange.to_sklearn(oracle.network(0, (6, 2), np.float32))

    def test_an_estimator_that_is_not_fitted_or_another(self):
        for estimator in (MLPClassifier(), "a string"):
            with pytest.raises(ValueError, match=r"expected a.*fitted MLPClassifier"):
                exchange.from_sklearn(estimator)

    def test_float64_is_not_rounded_silently(self):
        estimator = exchange.to_sklearn(self.params)
        with pytest.raises(ValueError, match="set jax_enable_x64"):
            exchange.from_sklearn(estimator, dtype=np.float64)


class TestOnnx:
    def run(self, path, x):
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0]

    @pytest.mark.parametrize("loss", losses.SHIPPED, ids=lambda loss: loss.name)
    @pytest.mark.parametrize("act", ALL, ids=lambda act: act.name)
    def test_runs_as_predict_at_any_batch(self, tmp_path, act, loss):
        params = oracle.network(0, SIZES, np.float32)
        network = Network(act, act, loss)
        exchange.to_onnx(tmp_path / "model.onnx", params, network)
        for n in (1, 7, 128):
            x = np.random.default_rng(n).standard_normal((n, 6), np.float32) * 3
            assert close(self.run(tmp_path / "model.onnx", x), funcnet.predict(params, x, network), 1e-5)

    def test_each_layer_has_its_own_activation(self, tmp_path):
        params, network = oracle.network(0, SIZES, np.float32), Network((activations.tanh, activations.silu))
        exchange.to_onnx(tmp_path / "model.onnx", params, network)
        x = np.random.default_rng(0).standard_normal((7, 6), np.float32)
        assert close(self.run(tmp_path / "model.onnx", x), funcnet.predict(params, x, network), 1e-5)

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.float64])
    def test_other_dtypes(self, tmp_path, dtype):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), oracle.network(0, SIZES, np.float64))
        exchange.to_onnx(tmp_path / "model.onnx", params)
        x = np.random.default_rng(0).standard_normal((7, 6), np.float64 if dtype == np.float64 else np.float32)
        got = self.run(tmp_path / "model.onnx", x)
        assert got.dtype == x.dtype
        assert close(got, funcnet.predict(params, x), 1e-6)

    def test_a_custom_loss_is_refused_and_the_file_kept(self, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(b"older")
        with pytest.raises(ValueError, match="loss is mine, expected one of softmax_cross_entropy"):
            exchange.to_onnx(path, oracle.network(0, SIZES, np.float32), Network(loss=MINE))
        assert path.read_bytes() == b"older"
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            exchange.to_onnx(tmp_path / "no" / "model.onnx", oracle.network(0, SIZES, np.float32))
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_stablehlo_runs_any_activation_at_any_batch(tmp_path):
    square = funcnet.Activation("square", lambda z: z * z, lambda z, a: 2 * z)
    params = oracle.network(0, SIZES, np.float32)
    network = Network(square)
    exchange.to_stablehlo(tmp_path / "network", params, network)
    exported = export.deserialize(bytearray((tmp_path / "network").read_bytes()))
    assert re.search(r"stablehlo\.|module", exported.mlir_module())
    for n in (1, 7, 128):
        x = np.random.default_rng(n).standard_normal((n, 6), np.float32)
        assert close(exported.call(x), funcnet.predict(params, x, network), 1e-6)


def test_the_block_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (block,) = re.findall(r"```python exchange\n(.*?)```", readme, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert {path.name for path in tmp_path.iterdir()} == {"network.onnx", "network.stablehlo"}
