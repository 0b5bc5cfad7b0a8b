"""scikit-learn: its `MLPClassifier` and `MLPRegressor`."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from funcnet import activations
from funcnet.activations import identity
from funcnet.exchange.checks import check_exported, known, largest_error, outputs, random_inputs
from funcnet.extras import import_extra
from funcnet.losses import SHIPPED, sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from funcnet.network import Network, Params

# scikit-learn's name for an activation.
_SKLEARN = {"identity": "identity", "relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}


def from_sklearn(estimator: Any, *, dtype: DTypeLike = jnp.float32) -> tuple[Params, Network]:
    """The weights of a fitted `MLPClassifier` or `MLPRegressor`, and its network.

    `predict` then gives its `predict_proba`, or its `predict` for regression. For two classes scikit-learn has one
    output, the probability of the second class.

    Args:
      estimator: fitted, by any solver, with or without early stopping or a warm start. For a pipeline pass its last
        step, and give the network the data that the other steps return.
      dtype: the dtype to round to; scikit-learn computes in the dtype of the data it was fitted to, usually float64.

    Returns:
      `[(W, b), ...]`, copies, and the `Network`.

    Raises:
      ValueError: the estimator is not fitted or of another class, or predicts differently on random inputs (a Poisson
        regression, a subclass); the dtype is not floating, or is float64 and `jax_enable_x64` is not set.

    >>> from sklearn.neural_network import MLPClassifier
    >>> from funcnet import predict
    >>> x, y = np.eye(6), np.array([0, 1, 2, 0, 1, 2])
    >>> model = MLPClassifier((5,), activation="tanh", solver="lbfgs", max_iter=50, random_state=0).fit(x, y)
    >>> params, network = from_sklearn(model)
    >>> p = np.asarray(predict(params, x.astype(np.float32), network))
    >>> network, bool(np.abs(p - model.predict_proba(x)).max() < 1e-6)
    (Network(hidden=tanh), True)
    """
    losses = {"softmax": softmax_cross_entropy, "logistic": sigmoid_cross_entropy, "identity": squared_error}
    out, hidden = getattr(estimator, "out_activation_", None), getattr(estimator, "activation", None)
    if not hasattr(estimator, "coefs_") or out not in losses or hidden not in _SKLEARN.values():
        raise ValueError(
            f"estimator is {estimator!r} with hidden activation {hidden!r} and output {out!r}, expected a "
            "fitted MLPClassifier, or MLPRegressor for the squared error; for a pipeline, its last step"
        )
    _check_dtype(dtype)
    name = next(name for name, theirs in _SKLEARN.items() if theirs == hidden)
    pairs = [*zip(estimator.coefs_, estimator.intercepts_, strict=True)]
    network = Network(activations.from_name(name), loss=losses[out])
    _check_same(estimator, pairs, network)
    return [(jnp.array(W, dtype), jnp.array(b, dtype)) for W, b in pairs], network


def to_sklearn(params: Params, network: Network = Network(), *, classes: ArrayLike | None = None) -> Any:
    """A fitted scikit-learn estimator with the same predictions as `predict`.

    It has no training history. `partial_fit` continues from these weights, and so does `fit` after
    `set_params(warm_start=True)`.

    Args:
      params: the network; its outputs are logits, or values. Half precision becomes float32.
      network: relu, tanh, sigmoid or identity, one for all hidden layers, and identity for the output; the loss
        `softmax_cross_entropy` (three classes or more), `sigmoid_cross_entropy` (two classes if there is one output,
        else one label per output) or `squared_error` (an `MLPRegressor`).
      classes: the labels that its `predict` returns, ascending; by default 0, 1, 2, ....

    Returns:
      An `MLPClassifier` or `MLPRegressor`, with the solver "sgd"; its weights are writable copies.

    Raises:
      ValueError: scikit-learn has no such network; the message says why.
      ImportError: scikit-learn is not installed.

    >>> import funcnet
    >>> params, x = funcnet.init(jax.random.key(0), (4, 8, 3)), np.ones((2, 4), np.float32)
    >>> model = to_sklearn(params, classes=["cat", "dog", "owl"])
    >>> bool(np.allclose(model.predict_proba(x), funcnet.predict(params, x), atol=1e-6))
    True
    """
    neural_network = import_extra("sklearn.neural_network")
    check_exported(params, network)
    K, loss = params[-1][0].shape[1], network.loss
    settings = {"hidden_layer_sizes": [W.shape[1] for W, _ in params[:-1]], "activation": _hidden(network, len(params))}
    settings |= {"solver": "sgd", "random_state": 0}
    dtype = np.promote_types(params[0][0].dtype, np.float32)
    x = np.zeros((max(K, 2), params[0][0].shape[0]), dtype)
    if loss == squared_error:
        if classes is not None:
            raise ValueError(f"classes are {classes}, expected none: the loss is squared_error, for regression")
        estimator = neural_network.MLPRegressor(**settings)
        estimator.partial_fit(x, np.zeros((len(x), K) if K > 1 else len(x)))
    elif loss in (softmax_cross_entropy, sigmoid_cross_entropy):
        labels, y = _labels(K, loss, classes)
        estimator = neural_network.MLPClassifier(**settings)
        estimator.partial_fit(x, y, classes=labels)
    else:
        raise ValueError(f"loss is {loss.name}, expected one of {', '.join(known.name for known in SHIPPED)}")
    # `partial_fit` has made all the attributes; now undo what it has learned and counted.
    weights = [np.array(leaf, dtype) for leaf in jax.tree.leaves(params)]
    estimator.coefs_, estimator.intercepts_ = weights[0::2], weights[1::2]
    estimator._best_coefs, estimator._best_intercepts = ([w.copy() for w in weights[i::2]] for i in (0, 1))
    estimator.n_iter_, estimator.t_, estimator.loss_curve_, estimator.best_loss_ = 0, 0, [], np.inf
    estimator._no_improvement_count = 0
    del estimator._optimizer, estimator.loss_
    return estimator.set_params(random_state=None)


def _check_same(estimator, pairs, network) -> None:
    """Refuse an estimator whose predictions are not those of its weights, before these are rounded."""
    x = random_inputs(len(pairs[0][0]))
    method = "predict_proba" if hasattr(estimator, "predict_proba") else "predict"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. that columns have no names
        theirs = np.asarray(getattr(estimator, method)(x)).reshape(len(x), -1)
    p = outputs(pairs, network, x)[1]
    if p.shape[1] == 1 and method == "predict_proba":
        p = np.concatenate([1 - p, p], 1)
    error = largest_error(p, theirs)
    if not error <= 1e-7:
        raise ValueError(
            f"estimator is {estimator!r}, whose {method} on random inputs differs from that of its weights with "
            f"{network} by {error:.2g} of the largest; expected an MLPClassifier or MLPRegressor that predicts as "
            "scikit-learn's own does"
        )


def _check_dtype(dtype) -> None:
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"dtype is {dtype!r}, expected a floating dtype, e.g. 'float32'")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError("dtype is float64, which JAX would round to float32: set jax_enable_x64 first")


def _hidden(network, L) -> str:
    """scikit-learn's name for the one activation of all hidden layers."""
    *layers, output = network.activations(L)
    if output != identity:
        raise ValueError(
            f"the output activation is {output}, expected identity: scikit-learn has only that of the loss"
        )
    names = {known(f, f"layer {l}", _SKLEARN, "scikit-learn")[0] for l, f in enumerate(layers, 1)} or {"identity"}
    if len(names) > 1:
        raise ValueError(f"the hidden activations are {sorted(names)}, scikit-learn has one for all layers")
    return names.pop()


def _labels(K, loss, classes) -> tuple[np.ndarray, np.ndarray]:
    """The classes of a classifier of `K` outputs, and targets from which scikit-learn infers the kind of problem."""
    several = loss == sigmoid_cross_entropy and K > 1  # several labels, each true or not
    if loss == softmax_cross_entropy and K < 3:
        raise ValueError(f"softmax over {K} outputs: scikit-learn has one logistic output for two classes")
    classes = np.arange(max(K, 2)) if classes is None else np.asarray(classes)
    if classes.shape != (max(K, 2),) or not (classes[1:] > classes[:-1]).all():
        raise ValueError(f"classes are {classes}, expected {max(K, 2)}, ascending")
    if several and (classes != np.arange(K)).any():
        raise ValueError(
            f"classes are {classes}, expected 0 to {K - 1}, which scikit-learn has for several labels at once"
        )
    return classes, np.eye(K, dtype=int) if several else classes
