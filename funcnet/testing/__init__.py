"""Gradient checks: compare a hand-written gradient with a ladder of references, leaf by leaf, entry by entry.

    assert_backward(params, x, y, Network(hidden=my_activation))            # in a pytest test
    assert_vjp(my_norm, x, w)                                               # any JAX function, with its own rule
    check_gradients(fn, grad_fn, (params, x, y))                            # any scalar function of a tree
    python -m funcnet.testing                                               # all shipped functions, on this device

**The measure** of a leaf is `max|d| / (eps max|leaf|)`, with the eps of the leaf's dtype. An elementwise relative
tolerance rejects correct gradients: if terms cancel, an entry is small, but its error is not. A tolerance on a norm, or
one that grows with the size, accepts wrong gradients.

**The ladder.** Each row of a report names its references:

1. `jax.grad` in the dtype of the arguments;
2. `jax.grad` in float64, with the hand-written gradient also run in float64, even in a float32 process;
3. sixth-order central differences of the function itself in float64, independent of autodiff, along each entry of a
   small leaf and along random directions of a large one, by steps of one size or relative to the entries;
4. the order of the Taylor remainder, `|f(p + h v) - f(p) - h g.v| ~ h^2`: 2.00 for a correct gradient at any scale,
   over five halvings of h.

**The tolerance** is 16 eps up to 4 layers and 64 eps up to 32 (a correct float32 backward measures 1 to 3, and up to
13), and 64 eps for a function that is not a network. If rounding costs more (terms cancel, a tanh saturates), the
distance of `jax.grad` itself from float64 is measured, eight times that distance is allowed, and the report says so.
The gradient run in float64 must be correct to one part in 10^9 of the leaf's largest entry, so that float32's rounding
hides no mistake. More is allowed in float64 only for saturated units, whose slopes in `jax.grad` are all rounding
(`1 - a^2` for tanh): the effect of an error of eps in every slope on the gradient is measured.

**Kinks.** If a sample's `z` is within its own rounding error of a kink, either one-sided derivative is correct. Such
samples are found, counted, taken out of the batch, and judged one at a time between the gradients on the two sides. The
kinks of a loss, or of a function that is not a network, are not known: if a gradient differs from `jax.grad`, the point
is pushed off its kinks, if it has any, and a gradient between those around it passes.

**A function that JAX cannot differentiate**, e.g. one in NumPy, is judged by differences alone, to one part in 10^6.
"""

from funcnet.testing.functions import assert_tree_close, check_activation, check_gradients, check_loss
from funcnet.testing.kinks import find_kinks
from funcnet.testing.networks import assert_backward, check_backward, save_case
from funcnet.testing.report import Report, Row
from funcnet.testing.rules import assert_jvp, assert_vjp, check_jvp, check_vjp
from funcnet.testing.trees import enable_x64

__all__ = [
    "Report", "Row", "assert_backward", "assert_jvp", "assert_tree_close", "assert_vjp", "check_activation",
    "check_backward", "check_gradients", "check_jvp", "check_loss", "check_vjp", "enable_x64", "find_kinks",
    "save_case",
]  # fmt: skip
