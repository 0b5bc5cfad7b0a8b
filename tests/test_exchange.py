"""Networks of scikit-learn, imported and exported, StableHLO, and what is refused everywhere.

PyTorch and ONNX have files of their own. The other libraries are the oracle.
"""

import pickle
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from exchanged import bits, close
from jax import export
from sklearn.base import clone
from sklearn.metrics import accuracy_score, r2_score
from sklearn.neural_network import MLPClassifier, MLPRegressor

import funcnet
from funcnet import Network, activations, exchange, losses

onnx = pytest.importorskip("onnx", reason="needs the extra `exchange`")
torch = pytest.importorskip("torch", reason="needs the extra `exchange`")


SIZES = (6, 9, 8, 4)
MINE = replace(losses.squared_error, name="mine")
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


NETWORKS = {  # outputs, and the loss
    "binary": (1, losses.sigmoid_cross_entropy),
    "multi-class": (3, losses.softmax_cross_entropy),
    "multi-label": (4, losses.sigmoid_cross_entropy),
    "one value": (1, losses.squared_error),
    "several values": (3, losses.squared_error),
}


class TestAnEstimatorToGoOnWith:
    """What `to_sklearn` gives is as good as one that scikit-learn made, and shares nothing with what it came from."""

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("solver", ["sgd", "adam"])
    @pytest.mark.parametrize("kind", NETWORKS)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_goes_on_as_scikit_learn_itself_would(self, kind, solver, dtype):
        """Another estimator is given the same weights by hand before its first step."""
        K, loss = NETWORKS[kind]
        x, y = sklearn_data(kind)
        x, network = x.astype(dtype), Network(activations.tanh, loss=loss)
        classes = np.unique(y) if kind in ("binary", "multi-class") else None
        mine = oracle.network(0, (6, 8, 5, K), dtype)
        before = bits(mine)
        for params in (mine, jax.tree.map(jnp.array, mine)):
            state = np.random.get_state()[1].tolist()  # noqa: NPY002 (scikit-learn's own, by default)
            estimator = exchange.to_sklearn(params, network, classes=classes)
            assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
            assert all(w.flags.writeable and w.flags.owndata for w in [*estimator.coefs_, *estimator.intercepts_])
            assert (estimator.t_, estimator.n_iter_, estimator.loss_curve_) == (0, 0, [])
            assert estimator.best_loss_ == np.inf
            assert not {"_optimizer", "loss_"} & vars(estimator).keys()
            estimator = pickle.loads(pickle.dumps(estimator))
            estimator.set_params(solver=solver, random_state=0, shuffle=False)
            score = estimator.score(x, y)
            p = np.asarray(funcnet.predict(params, x, network))
            if "value" in kind:
                want = r2_score(y, p)
            else:
                want = accuracy_score(y, classes[p.argmax(1)] if K == 3 else (p > 0.5).reshape(y.shape))
            assert score == pytest.approx(want, rel=1e-4 if dtype == np.float32 else 1e-12)
            make = MLPRegressor if "value" in kind else MLPClassifier
            twin = make(hidden_layer_sizes=[8, 5], activation="tanh", solver=solver, random_state=0, shuffle=False)
            settings = {} if "value" in kind else {"classes": np.arange(K) if classes is None else classes}
            twin.partial_fit(x, y, **settings)
            for ours, theirs in zip(mine, zip(twin.coefs_, twin.intercepts_, strict=True), strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    b[...] = a
            del twin._optimizer
            twin.t_, twin.n_iter_, twin.loss_curve_, twin.best_loss_ = 0, 0, [], np.inf
            for _ in range(3):
                estimator.partial_fit(x, y)
                twin.partial_fit(x, y)
            for a, b in zip(estimator.coefs_, twin.coefs_, strict=True):
                np.testing.assert_array_equal(a, b)
            assert estimator.loss_curve_ == twin.loss_curve_
            assert len(estimator.loss_curve_) == 3
            assert bits(params) == before
            assert (estimator.coefs_[0] != params[0][0]).any()

    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    @pytest.mark.parametrize("kind", NETWORKS)
    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_fit_goes_on_from_the_weights_if_told_to(self, kind, solver):
        K, loss = NETWORKS[kind]
        x, y = sklearn_data(kind)
        params, network = oracle.network(0, (6, 8, 5, K), np.float32), Network(loss=loss)
        classes = np.unique(y) if kind in ("binary", "multi-class") else None
        estimator = exchange.to_sklearn(params, network, classes=classes)
        before = bits(params)
        estimator.set_params(warm_start=True, solver=solver, max_iter=1, learning_rate_init=1e-5).fit(x, y)
        assert bits(params) == before
        if solver != "lbfgs":  # one step of which is no small one
            assert np.abs(estimator.coefs_[0] - params[0][0]).max() < 1e-3
        fresh = clone(estimator).set_params(warm_start=False, random_state=0).fit(x, y)
        assert np.abs(fresh.coefs_[0] - params[0][0]).max() > 0.01
        estimator.score(x, y)

    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    @pytest.mark.parametrize("settings", [{"early_stopping": True}, {"warm_start": True}, {"solver": "lbfgs"}])
    def test_reads_an_estimator_however_it_was_fitted(self, settings):
        x, y = sklearn_data("multi-class")
        estimator = MLPClassifier((8,), max_iter=15, random_state=0, **settings).fit(x, y).fit(x, y)
        params, network = exchange.from_sklearn(estimator)
        kept = [w.copy() for w in estimator.coefs_]
        p = np.asarray(funcnet.predict(params, x.astype(np.float32), network))
        np.testing.assert_allclose(p, estimator.predict_proba(x), atol=1e-5)
        params = jax.tree.map(
            lambda p, g: p - g, params, funcnet.backward(params, x[:2].astype(np.float32), np.array([0, 1]), network)
        )
        assert all((a == b).all() for a, b in zip(kept, estimator.coefs_, strict=True))
        estimator.coefs_[0][...] = 0
        assert np.asarray(exchange.from_sklearn(estimator)[0][0][0]).max() == 0
        assert np.abs(np.asarray(params[0][0])).max() > 0


class TestWhatSklearnHasNot:
    params = oracle.network(0, SIZES, np.float32)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"network": Network(activations.silu)},
                "layer 1: the activation is silu, which scikit-learn does not have",
            ),
            (
                {"network": Network((activations.relu, activations.tanh))},
                r"are \['relu', 'tanh'\], scikit-learn has one",
            ),
            ({"network": Network(output=activations.tanh)}, "the output activation is tanh, expected identity: scikit"),
            ({"network": Network(loss=MINE)}, "loss is mine, expected one of softmax"),
            ({"network": activations.tanh}, "network is tanh of type Activation, expected a Network"),
            (
                {"network": Network(compute_dtype="bfloat16")},
                r"in bfloat16, .*dataclasses.replace\(network, compute_dtype=None",
            ),
            (
                {"network": Network(loss=losses.squared_error), "classes": [0, 1]},
                "classes are .*, expected none: the loss is squared_error",
            ),
            ({"classes": [3, 2, 1, 0]}, "classes are .*, expected 4, ascending"),
            ({"classes": [0, 1]}, "classes are .*, expected 4, ascending"),
            (
                {"classes": [1, 2, 3, 4], "network": Network(loss=losses.sigmoid_cross_entropy)},
                "expected 0 to 3, which scikit-learn has for several labels",
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

    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    def test_one_that_predicts_otherwise_than_its_weights(self):
        class Sharper(MLPClassifier):
            def predict_proba(self, X):
                return np.asarray(super().predict_proba(X)) ** 2

        class Shifted(MLPRegressor):
            def predict(self, X):
                return np.asarray(super().predict(X)) + 1e-6

        for kind, ours, theirs, method in (
            ("multi-class", Sharper, MLPClassifier, "predict_proba"),
            ("binary", Sharper, MLPClassifier, "predict_proba"),
            ("one value", Shifted, MLPRegressor, "predict"),
        ):
            estimator = theirs(hidden_layer_sizes=(3,), solver="lbfgs", max_iter=5).fit(*sklearn_data(kind))
            exchange.from_sklearn(estimator)
            estimator.__class__ = ours
            with pytest.raises(ValueError, match=rf"whose {method} on random inputs differs from that of its we"):
                exchange.from_sklearn(estimator)

    def test_float64_is_not_rounded_silently(self):
        estimator = exchange.to_sklearn(self.params)
        with pytest.raises(ValueError, match="set jax_enable_x64"):
            exchange.from_sklearn(estimator, dtype=np.float64)
        for dtype in (int, "float31"):
            with pytest.raises(ValueError, match=r"dtype is .*, expected a floating dtype, e.g. 'float32'"):
                exchange.from_sklearn(estimator, dtype=dtype)


EXPORTS = {
    "torch": exchange.to_torch,
    "sklearn": exchange.to_sklearn,
    "onnx": partial(exchange.to_onnx, "unused"),
    "stablehlo": partial(exchange.to_stablehlo, "unused"),
}


@pytest.mark.parametrize("to", EXPORTS.values(), ids=EXPORTS)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([(torch.ones(3, 2), torch.ones(2))], "layer 1: W is a torch.Tensor, expected an array of JAX or NumPy"),
        ([(np.ones((3, 2)), [0.0, 0.0])], "layer 1: b is a list, expected an array"),
        ([("W", "b")], "layer 1: W is a str, expected an array"),
        (["Wb"], r"layer 1: params\[0\] is the string 'Wb', expected a pair"),
        ("weights.safetensors", r"params is the string 'weights.safetensors', expected a list \[\(W, b\)"),
        ({"0.weight": np.ones((2, 3))}, r"(?s)params is \{.*\} of type dict, expected a list"),
        (torch.nn.Linear(3, 2), r"params is Linear.* of type Linear, expected a list"),
        (None, "params is None of type NoneType, expected a list"),
        (np.ones((1, 2, 3)), r"params is an array of shape \(1, 2, 3\), expected a list"),
        ([np.ones((3, 2))], r"layer 1: params\[0\] is an array of shape \(3, 2\), expected a pair"),
        ([(np.ma.masked_array(np.ones((3, 2)), np.eye(3, 2)), np.ones(2))], r"layer 1: W\[0, 0\] is masked, expected"),
        ([(np.ones((3, 2), int), np.ones(2, int))], "layer 1: W has dtype int64, expected one floating dtype"),
    ],
)
def test_what_is_no_list_of_layers_is_refused_in_words(to, params, message):
    with pytest.raises(ValueError, match=message):
        to(params)


def test_stablehlo_runs_any_activation_at_any_batch(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    square = funcnet.Activation("square", lambda z: z * z, lambda z, a: 2 * z)
    params = oracle.network(0, SIZES, np.float32)
    network = Network(square)
    exchange.to_stablehlo("~/network", params, network)
    exported = export.deserialize(bytearray((tmp_path / "network").read_bytes()))
    assert re.search(r"stablehlo\.|module", exported.mlir_module())
    for n in (1, 7, 128):
        x = np.random.default_rng(n).standard_normal((n, 6), np.float32)
        assert close(exported.call(x), funcnet.predict(params, x, network), 1e-6)
