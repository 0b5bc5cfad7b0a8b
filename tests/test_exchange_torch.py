"""Networks of PyTorch, imported and exported: PyTorch is the oracle."""

import copy
import warnings
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from exchanged import bits, close

import funcnet
from funcnet import Network, activations, exchange, losses

torch = pytest.importorskip("torch", reason="needs the extra `exchange`")
prune = pytest.importorskip("torch.nn.utils.prune", reason="needs the extra `exchange`")


nn, F = torch.nn, torch.nn.functional
ALL = (*activations.SHIPPED, activations.leaky_relu(0.25))
SIZES = (6, 9, 8, 4)
SIN = funcnet.Activation("sin", jnp.sin, lambda z, a: jnp.cos(z))


def module(seed=0, sizes=SIZES, nonlinearity=torch.nn.ReLU, **settings):
    torch.manual_seed(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [torch.nn.Linear(n_in, n_out, **settings), nonlinearity()]
    return torch.nn.Sequential(*layers[:-1])


def inputs(n=7, n_in=6):
    return np.random.default_rng(1).standard_normal((n, n_in), np.float32) * 3


class Calls(nn.Module):
    """A module that computes what a function makes of its parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


def linear(n_in=6, n_out=6, **settings):
    return nn.Linear(n_in, n_out, **settings)


def hooked():
    model = nn.Sequential(linear(), nn.Tanh(), linear())
    model[0].register_forward_hook(lambda module, args, out: torch.sigmoid(out))
    return model


def pruned():
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    prune.l1_unstructured(model[0], "weight", amount=9)
    return model


def weight_norm_of_old():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(torch.nn.utils.weight_norm(linear()), nn.ReLU(), linear())


shared, tanh = linear(), nn.Tanh()
parametrizations = torch.nn.utils.parametrizations

# What is exact: a module, and the network that it is.
READ = {
    "one layer": (linear(), Network()),
    "one for all": (nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear()), Network(activations.tanh)),
    "each its own": (
        nn.Sequential(linear(6, 5), nn.ELU(), linear(5, 7), nn.LeakyReLU(0.3), linear(7, 4)),
        Network([activations.elu, activations.leaky_relu(0.3)]),
    ),
    "none between": (nn.Sequential(linear(), linear(), nn.SiLU()), Network(activations.identity, activations.silu)),
    "nested": (
        nn.Sequential(nn.Flatten(), nn.Sequential(linear(), nn.Sequential(nn.GELU(), nn.Dropout())), linear()),
        Network(activations.gelu),
    ),
    "in place": (nn.Sequential(linear(), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), linear()), Network()),
    "one instance twice": (nn.Sequential(linear(), tanh, linear(), tanh, linear()), Network(activations.tanh)),
    "one layer twice": (nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), linear(6, 2)), Network(activations.tanh)),
    "another order": (
        Calls(lambda m, x: m.last(m.between(m.first(x))), last=linear(9, 4), between=nn.Softplus(), first=linear(6, 9)),
        Network(activations.softplus),
    ),
    "another order, square": (
        Calls(lambda m, x: m.last(m.between(m.first(x))), last=linear(), first=linear(), between=nn.ReLU()),
        Network(),
    ),
    "functions": (
        Calls(lambda m, x: m.b(torch.tanh(m.a(x.flatten(1)))).relu(), a=linear(), b=linear()),
        Network(activations.tanh, activations.relu),
    ),
    "functions in place": (
        Calls(lambda m, x: m.b(F.silu(m.a(x), inplace=True)), a=linear(), b=linear()),
        Network(activations.silu),
    ),
    "matrices": (
        Calls(lambda m, x: torch.sigmoid(x @ m.W + m.b) @ m.V, W=nn.Parameter(torch.randn(6, 5)),
              V=nn.Parameter(torch.randn(5, 3)), b=nn.Parameter(torch.randn(5))),
        Network(activations.sigmoid),
    ),
    "no bias": (nn.Sequential(linear(bias=False), nn.ReLU(), linear(bias=False)), Network()),
    "a part that is not called": (Calls(lambda m, x: m.a(x), a=linear(), b=linear(5, 5), c=nn.LayerNorm(3)), Network()),
    "a part of no use": (Calls(lambda m, x: (m.b(x).softmax(1), m.a(x))[1], a=linear(), b=linear(6, 2)), Network()),
    "a cast": (Calls(lambda m, x: m.b(m.a(x.float()).relu()), a=linear(), b=linear()), Network()),
    "a hook instead of an activation": (nn.Sequential(hooked()[0], linear()), Network(activations.sigmoid)),
    "pruned": (pruned(), Network()),
    "weight norm": (nn.Sequential(parametrizations.weight_norm(linear()), nn.ReLU(), linear()), Network()),
    "weight norm of old": (weight_norm_of_old(), Network()),
    "spectral norm": (
        nn.Sequential(parametrizations.spectral_norm(linear()), nn.Tanh(), linear()),
        Network(activations.tanh),
    ),
    "float16": (module(dtype=torch.float16), Network()),
    "inference mode": (
        Calls(torch.inference_mode()(lambda m, x: m.b(F.dropout(m.a(x).relu(), training=m.training)).reshape(-1, 6)),
              a=linear(), b=linear()),
        Network(),
    ),
    "wrapped": (nn.DataParallel(torch.compile(nn.Sequential(linear(), nn.Tanh(), linear()), backend="eager")),
                Network(activations.tanh)),
    "a constant": (Calls(lambda m, x: m.a(x) + m.c, a=linear(bias=False), c=None), Network()),
    "NaN": (Calls(lambda m, x: m.b(m.a(x)), a=linear(), b=linear()), Network(activations.identity)),
    "softmax": (nn.Sequential(linear(), nn.ReLU(), linear(), nn.Softmax(1)), Network()),
    "log-softmax": (Calls(lambda m, x: F.log_softmax(m.a(x), dim=-1), a=linear()), Network()),
    "sigmoid": (nn.Sequential(linear(), nn.Sigmoid(), linear(6, 1), nn.Sigmoid()),
                Network(activations.sigmoid, loss=losses.sigmoid_cross_entropy)),
    "one output": (nn.Sequential(linear(), nn.ReLU(), linear(6, 1)), Network(loss=losses.squared_error)),
    "noise of no use": (Calls(lambda m, x: (torch.randn(3), m.a(x))[1], a=linear()), Network()),
}  # fmt: skip

READ["a constant"][0].c = torch.ones(6)  # no parameter, no buffer
READ["NaN"][0].b.weight.data[0, 0] = torch.nan

EXPECTED = r", expected torch.nn.Linear layers, each followed by at most one of identity, relu"
# What is refused: a module, and what is said.
REFUSED = {
    "convolution": (nn.Sequential(nn.Conv2d(1, 2, 3)), r"0 is a Conv2d and cannot be run .* expected torch.nn.Linear"),
    "batch norm": (nn.Sequential(linear(), nn.BatchNorm1d(6)), r"1 is a BatchNorm1d .*fuse_linear_bn_eval"),
    "batch norm without affine": (
        nn.Sequential(linear(), nn.BatchNorm1d(6, affine=False), linear()), "1 is a BatchNorm1d",
    ),
    "batch norm without statistics": (
        nn.Sequential(linear(), nn.BatchNorm1d(6, affine=False, track_running_stats=False), linear()),
        "1 is a BatchNorm1d",
    ),
    "layer norm": (nn.Sequential(linear(), nn.LayerNorm(6, elementwise_affine=False)), "1 is a LayerNorm.*" + EXPECTED),
    "rms norm": (nn.Sequential(linear(), nn.RMSNorm(6, elementwise_affine=False), linear()), "1 is a RMSNorm"),
    "softmax between": (nn.Sequential(linear(), nn.Softmax(1), linear()), "1 is a Softmax and computes _softmax, ex"),
    "softmax over samples": (nn.Sequential(linear(), nn.Softmax(0)), "1 is a Softmax and computes _softmax, expected"),
    "softmax, then more": (nn.Sequential(linear(), nn.Softmax(1), nn.Tanh()), "1 is a Softmax"),
    "pooling": (nn.Sequential(linear(3, 4), nn.MaxPool1d(2), nn.Linear(2, 2)), "1 is a MaxPool1d"),
    "prelu": (nn.Sequential(linear(), nn.PReLU(), linear()), "1 is a PReLU"),
    "elu(0.5)": (nn.Sequential(linear(), nn.ELU(0.5), linear()), "1 is a ELU and computes elu" + EXPECTED),
    "softplus(2)": (nn.Sequential(linear(), nn.Softplus(2.0), linear()), "1 is a Softplus"),
    "softplus(1, 1)": (nn.Sequential(linear(), nn.Softplus(1.0, 1.0), linear()), "1 is a Softplus"),
    "relu6": (nn.Sequential(linear(), nn.ReLU6(), linear()), "1 is a ReLU6"),
    "two activations": (nn.Sequential(linear(), nn.ReLU(), nn.Tanh()), "2 is a Tanh and computes tanh" + EXPECTED),
    "a hook beside an activation": (hooked(), "1 is a Tanh"),
    "an activation first": (nn.Sequential(nn.Tanh(), linear()), "0 is a Tanh"),
    "a scale": (Calls(lambda m, x: m.a(x) * 2, a=linear()), "model is a Calls and computes mul"),
    "a shift": (Calls(lambda m, x: m.a(x) + 2, a=linear()), "model is a Calls and computes add"),
    "a shift of the input": (Calls(lambda m, x: m.a(x / 255), a=linear()), "model is a Calls and computes div"),
    "residual": (Calls(lambda m, x: x + m.a(x), a=linear()), "model is a Calls and computes add"),
    "residual in place": (Calls(lambda m, x: m.a(x).add_(x), a=linear()), "model is a Calls and computes add"),
    "concatenation": (Calls(lambda m, x: m.b(torch.cat([x, m.a(x)], 1)), a=linear(), b=linear(12, 2)), "computes cat"),
    "attention": (Calls(lambda m, x: m.a(x) @ x.T, a=linear()), "computes (mm|t|permute|numpy_T)"),
    "a part": (Calls(lambda m, x: m.a(x)[:, :3], a=linear()), "model is a Calls and computes slice"),
    "another side": (Calls(lambda m, x: m.a(x).T, a=linear()), "model is a Calls and computes"),
    "noise": (Calls(lambda m, x: m.b(F.dropout(m.a(x))), a=linear(), b=linear()), "model is a Calls and computes"),
    "random weights": (
        Calls(lambda m, x: F.linear(x, m.W + m.W.exp() * torch.randn(6, 6)), W=nn.Parameter(torch.ones(6, 6))),
        "model is a Calls and gives other outputs at every call, for the same inputs",
    ),
    "dropped weights": (
        Calls(lambda m, x: F.linear(x, F.dropout(m.a.weight), m.a.bias), a=linear()),
        "model is a Calls and gives other outputs at every call",
    ),
    "a sigmoid and a softmax": (
        nn.Sequential(linear(), nn.Sigmoid(), nn.Softmax(1)), "softmax_cross_entropy takes logits, and output=sigmoid",
    ),
    "relu and a sigmoid": (
        nn.Sequential(linear(), nn.ReLU(), nn.Sigmoid()), "sigmoid_cross_entropy takes logits, and output=relu",
    ),
    "a softmax over one": (nn.Sequential(linear(6, 1), nn.Softmax(1)), "softmax_cross_entropy over one output is alw"),
    "values decide": (
        Calls(lambda m, x: m.a(x) if x.abs().max() < 1 else m.b(x), a=linear(), b=linear()),
        "model is a Calls and decides by values of its input" + EXPECTED,
    ),
    "rows decide": (
        Calls(lambda m, x: torch.where(x.sum(1, keepdim=True) > 0, m.a(x), m.b(x)), a=linear(), b=linear()),
        "model is a Calls and computes where",
    ),
    "two outputs": (Calls(lambda m, x: (m.a(x), x), a=linear()), "model gives a tuple, expected one tensor"),
    "no input": (Calls(lambda m, x: m.a.weight, a=linear()), "model gives a Tensor, expected one tensor"),
    "two inputs": (nn.Bilinear(3, 3, 2), "model is a Bilinear and cannot be run"),
    "widths": (nn.Sequential(linear(3, 4), linear(5, 2)), "1 is a Linear and cannot be run on 3 numbers per"),
    "no layer": (nn.Sequential(nn.ReLU()), "parameters of 0 dtypes, none, expected"),
    "float64": (linear(dtype=torch.float64), "weight is float64, which JAX would round to float32: set jax_enable_x64"),
    "two dtypes": (nn.Sequential(linear(), linear().half()), "parameters of 2 dtypes, torch.float16, torch.float32"),
    "complex": (linear(dtype=torch.complex64), "weight has dtype torch.complex64, expected one of torch.float16"),
    "meta": (linear(device="meta"), "weight holds no values yet"),
    "meta buffer": (
        Calls(lambda m, x: m.a(x), a=linear(), b=nn.BatchNorm1d(3, affine=False, device="meta")),
        "model is a Calls and cannot be run on 6 numbers per sample: Cannot copy out of meta tensor",
    ),
    "recurrent": (nn.RNN(6, 4), "model gives a tuple"),
    "embedding": (nn.Sequential(nn.Embedding(6, 4), linear(4, 2)), "0 is a Embedding and cannot be run"),
}  # fmt: skip


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
            F.cross_entropy(model(x_torch), y_torch).backward()
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
        x = inputs()
        network = Network(act, output=act, loss=losses.squared_error)
        model = exchange.to_torch(params, network)
        assert close(model(torch.from_numpy(x)).detach(), funcnet.forward(params, x, network), 2e-6)
        back, read = exchange.from_torch(model)
        assert bits(back) == bits(params)
        if act == activations.sigmoid:  # at the end it is read as that of the loss
            assert read == Network(act, loss=losses.sigmoid_cross_entropy)
            assert exchange.from_torch(model, network)[1] == network
        else:
            assert replace(read, loss=losses.squared_error).activations(3) == network.activations(3)

    def test_weights_are_copies(self):
        model = module()
        params, network = exchange.from_torch(model)
        back = exchange.to_torch(params, network)
        before = bits(params)
        with torch.no_grad():
            for p in (*model.parameters(), *back.parameters()):
                p.zero_()
        assert bits(params) == before

    def test_weights_in_another_byte_order(self):
        params = oracle.network(0, SIZES, np.float32)
        swapped = [(W.astype(W.dtype.newbyteorder()), b.astype(b.dtype.newbyteorder())) for W, b in params]
        assert bits(exchange.from_torch(exchange.to_torch(swapped))[0]) == bits(params)

    def test_tensors_of_any_layout(self):
        """Transposed views, slices, such that ask for gradients: the numbers are the same."""
        W = torch.randn(12, 9).T[::1, ::2].requires_grad_()
        assert not W.is_contiguous()
        state = OrderedDict(weight=W, bias=torch.ones(1).expand(9))
        ((ours, b),), _ = exchange.from_torch(state, Network())
        np.testing.assert_array_equal(ours, W.detach().numpy().T)
        np.testing.assert_array_equal(b, np.ones(9))


class TestWhatAModuleComputes:
    @pytest.mark.parametrize("name", READ)
    def test_is_read_in_the_order_of_its_calls(self, name):
        model, want = READ[name]
        params, network = exchange.from_torch(model)
        assert network == want
        x = inputs()
        own = next(model.parameters()).dtype
        theirs = model.eval()(torch.from_numpy(x).to(own)).detach().float()
        ends = name in ("softmax", "log-softmax", "sigmoid")  # in the loss
        ours = np.asarray((funcnet.predict if ends else funcnet.forward)(params, x, network))
        ours = np.log(ours) if name == "log-softmax" else ours
        assert close(ours, theirs, 1e-2 if own == torch.float16 else 2e-6)

    @pytest.mark.parametrize("name", REFUSED)
    def test_is_refused_by_name(self, name):
        model, message = REFUSED[name]
        with pytest.raises(ValueError, match=message):
            exchange.from_torch(model)

    def test_gelu_by_tanh_is_not_the_exact_one(self):
        model = nn.Sequential(linear(), nn.GELU("tanh"), linear())
        if not hasattr(activations, "gelu_tanh"):
            with pytest.raises(ValueError, match="1 is a GELU and computes gelu"):
                exchange.from_torch(model)
            return
        params, network = exchange.from_torch(model)
        assert network == Network(activations.gelu_tanh)
        x = inputs()
        assert close(funcnet.forward(params, x, network), model(torch.from_numpy(x)).detach(), 2e-6)

    def test_activations_of_ones_own_are_said(self):
        model = Calls(lambda m, x: m.b(torch.sin(m.a(x))), a=linear(), b=linear())
        with pytest.raises(ValueError, match=r"model is a Calls and computes sin.*from_torch\(model, Network"):
            exchange.from_torch(model)
        params, network = exchange.from_torch(model, Network(SIN))
        x = inputs()
        assert close(funcnet.forward(params, x, network), model(torch.from_numpy(x)).detach(), 2e-6)
        with pytest.raises(
            ValueError, match=r"other outputs .* with Network\(\): by .* \(model is a Calls and computes sin"
        ):
            exchange.from_torch(model, Network())
        with pytest.raises(ValueError, match="hidden is a tuple of 2, expected an Activation or 1 of them"):
            exchange.from_torch(model, Network([SIN] * 2))
        with pytest.raises(ValueError, match="network is 'tanh' of type str, expected a Network"):
            exchange.from_torch(model, "tanh")

    @pytest.mark.parametrize(
        ("model", "network"),
        [
            (nn.Sequential(linear(), nn.Tanh(), linear()), Network()),  # relu
            (nn.Sequential(linear(), nn.Tanh(), linear()), Network(activations.sigmoid)),
            (nn.Sequential(linear(), nn.GELU(), linear()), Network(activations.silu)),
            (nn.Sequential(linear(), nn.LeakyReLU(0.01), linear()), Network(activations.leaky_relu(0.0100001))),
            (nn.Sequential(linear(), nn.ReLU(), linear(), nn.Sigmoid()), Network()),
            (nn.Sequential(linear(), nn.ReLU(), linear(), nn.Softmax(1)), Network(loss=losses.squared_error)),
            (Calls(lambda m, x: x + m.b(m.a(x).relu()), a=linear(), b=linear()), Network()),
        ],
    )
    def test_another_network_is_noticed(self, model, network):
        with pytest.raises(ValueError, match="on random inputs the module gives other outputs than its layers, one"):
            exchange.from_torch(model, network)

    @pytest.mark.parametrize("name", ["dropout", "spectral norm", "weight norm of old", "pruned", "counters"])
    def test_is_left_as_it_was(self, name):
        count = Calls(lambda m, x: (setattr(m, "calls", m.calls + 1), m.tensor.add_(1), m.a(x))[-1], a=linear())
        count.calls, count.tensor = 0, torch.zeros(1)
        dropout = nn.Sequential(linear(), nn.Sequential(nn.Dropout(), nn.ReLU()), linear())
        model = {"dropout": dropout, "counters": count}.get(name) or copy.deepcopy(READ["one layer"][0])
        model = READ[name][0] if name in READ else model
        model.train()
        next(model.children()).eval()
        next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
        parts = [(part, dict(part.__dict__), {k: list(v) for k, v in part.__dict__.items() if isinstance(v, dict)})
                 for part in model.modules()]  # fmt: skip
        values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        random = torch.get_rng_state()
        exchange.from_torch(model)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
        for part, held, inner in parts:
            assert part.__dict__.keys() == held.keys()
            assert all(part.__dict__[key] is held[key] for key in held)
            assert {k: list(v) for k, v in part.__dict__.items() if isinstance(v, dict)} == inner
        assert next(model.parameters()).grad is not None
        assert count.tensor == 0

    def test_scripted_quantized_and_lazy_modules(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted = torch.jit.trace(linear(), torch.ones(2, 6))
            lazy = nn.LazyLinear(3)
        with pytest.raises(ValueError, match=r"model is a ScriptModule, .* pass the module from which it was made"):
            exchange.from_torch(scripted)
        with pytest.raises(ValueError, match=r"weight holds no values yet, .* call a lazy module once"):
            exchange.from_torch(lazy)
        params, _ = exchange.from_torch(scripted.state_dict(), Network())
        np.testing.assert_array_equal(params[0][0], scripted.weight.detach().numpy().T)


STATE = {
    "0.weight": torch.randn(5, 3),
    "0.bias": torch.randn(5),
    "2.weight": torch.randn(2, 5),
    "2.bias": torch.randn(2),
}


def prefixed(prefix, state=STATE):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


class TestStateDicts:
    @pytest.mark.parametrize(
        "model",
        [
            STATE,
            prefixed("module."),
            {"model": STATE},
            {
                "epoch": 3,
                "state_dict": prefixed("model."),
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
            },
            {"model_state_dict": STATE, "optimizer_state_dict": torch.optim.Adam(module().parameters()).state_dict()},
            {"checkpoint": {"net": prefixed("_orig_mod."), "step": torch.tensor(3)}, "args": {"lr": 0.1}},
        ],
    )
    def test_as_people_save_them(self, model, tmp_path):
        torch.save(model, tmp_path / "saved.pt")
        params, network = exchange.from_torch(
            torch.load(tmp_path / "saved.pt", weights_only=True), Network(activations.tanh)
        )
        assert network == Network(activations.tanh)
        for l, (W, b) in enumerate(params):
            np.testing.assert_array_equal(W, STATE[f"{2 * l}.weight"].numpy().T)
            np.testing.assert_array_equal(b, STATE[f"{2 * l}.bias"].numpy())

    def test_numbered_layers_come_by_number(self):
        """As safetensors sorts them, 10 comes before 2."""
        model = module(sizes=(4,) * 8)
        params, network = exchange.from_torch(model)
        again, _ = exchange.from_torch(dict(sorted(model.state_dict().items())), network)
        assert bits(again) == bits(params)

    def test_numbered_layers_beside_another_come_as_they_are_or_not_at_all(self):
        """Where 10 comes before 2, nobody knows where the other one belongs."""
        names = [*(f"layers.{i}" for i in range(12)), "out"]
        state = {f"{name}.weight": torch.full((2, 2), i) / 8 for i, name in enumerate(names)}
        params, _ = exchange.from_torch(state, Network())
        assert [int(8 * W[0, 0]) for W, _ in params] == [*range(13)]
        with pytest.raises(ValueError, match=r"layers.11.weight comes before layers.2.weight, as in the alphabet"):
            exchange.from_torch(dict(sorted(state.items())), Network())

    def test_a_layer_without_bias_gets_one_of_zeros(self):
        params, _ = exchange.from_torch({"weight": torch.ones(3, 2, dtype=torch.float16)}, Network())
        assert bits(params) == bits([(np.ones((2, 3), np.float16), np.zeros(3, np.float16))])

    def test_a_state_dict_needs_a_network(self):
        with pytest.raises(
            ValueError, match=r"holds weights and no activations: pass them by from_torch\(state, Network\(...\)\)"
        ):
            exchange.from_torch(module().state_dict())

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (
                {"fc.lora_A.weight": torch.ones(2, 4), "fc.lora_B.weight": torch.ones(3, 2)},
                "fc.lora_A.weight is by its name half of a LoRA adapter, expected that of a linear layer",
            ),
            ({"embed.weight": torch.ones(4, 4), "fc.weight": torch.ones(3, 4)}, "embed.weight is by its name an emb"),
            ({"weight": torch.ones(1, 2)}, "softmax_cross_entropy over one output is always 0"),
            ({"0.weight": torch.ones(2, 3, 4)}, r"0.weight has shape \(2, 3, 4\), expected the weight"),
            (STATE | {"0.scale": torch.ones(2)}, r"0.scale has shape \(2,\), expected the weight"),
            (STATE | {"1.weight": torch.ones(5), "1.bias": torch.ones(5)}, r"1.weight has shape \(5,\), expected"),
            (STATE | {"1.running_mean": torch.ones(5)}, r"1.running_mean has .*from_torch\(module\), to read what"),
            (STATE | {"1.bias": torch.ones(5)}, r"1.bias has shape \(5,\), expected"),
            (STATE | {"step": 3}, "step has type int, expected"),
            (STATE | {"0.bias": torch.ones(4)}, r"layer 1: W has shape \(3, 5\) and b \(4,\)"),
            ({"0.weight": torch.ones(5, 3), "1.weight": torch.ones(2, 4)}, "layer 2: W has 4 rows, but layer 1 has 5"),
            ({"weight_g": torch.ones(3, 1), "weight_v": torch.ones(3, 2)}, "holds no weights"),
            ({"weight": torch.ones(3, 2, device="meta")}, "weight holds no values yet"),
            ({"weight": torch.ones(3, 2).to_sparse()}, r"weight is sparse, expected a dense tensor: .to_dense\(\)"),
            ({"weight": torch.ones(3, 2, dtype=torch.int8)}, "weight has dtype torch.int8, expected one of torch."),
            ({"weight": torch.ones(3, 2).to(torch.float8_e4m3fn)}, "weight has dtype torch.float8_e4m3fn, expected"),
            ({"weight": torch.ones(3, 2).double()}, "weight is float64, .* set jax_enable_x64 first"),
            ({"weight": np.ones((3, 2))}, "holds no weights, expected a torch.nn.Module or the state dict of one"),
            ({}, "model is a dictionary of nothing and holds no weights"),
            ({"model": linear(), "epoch": 3}, r"a dictionary of 'model' \(Linear\), 'epoch' \(int\) and holds no"),
            ({"model": STATE, "ema": STATE}, r"several state dicts: pass one of model\['model'\], model\['ema'\]"),
            ("model.pt", r"model is 'model.pt' of type str, .*load a file by torch.load\(path, weights_only=True\)"),
            ([torch.ones(3, 2)], "model is .* of type list, expected a torch.nn.Module"),
        ],
    )  # fmt: skip
    def test_others_are_refused_by_name(self, state, message):
        with pytest.raises(ValueError, match=message):
            exchange.from_torch(state, Network())

    def test_a_quantized_tensor(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8)
        with pytest.raises(ValueError, match=r"weight is quantized, expected a dense tensor: .dequantize\(\)"):
            exchange.from_torch({"weight": weight}, Network())
