"""Gradients you can trust: a hand-written gradient against a ladder of references, leaf by leaf, entry by entry.

    assert_backward(params, x, y, Network(hidden=my_activation))            # in a pytest test
    check_gradients(fn, grad_fn, (params, x, y))                            # any scalar function of a tree
    python -m funcnet.testing                                               # all that ships, on this device

**The measure** of a leaf is `max|d| / (eps max|leaf|)`, with the eps of the leaf's dtype. An elementwise relative
tolerance rejects right gradients (where terms cancel, an entry is small and its error is not), and a tolerance on a
norm, or one that grows with the size, accepts wrong ones.

**The ladder.** Each row of a report says what it stands on:

1. `jax.grad` in the dtype of the arguments;
2. `jax.grad` in float64, with the hand-written gradient run in float64 too, also from a float32 process;
3. sixth-order central differences of the function itself in float64, which know nothing of autodiff, along each entry
   of a small leaf and along random directions of a large one;
4. the order of the Taylor remainder, `|f(p + h v) - f(p) - h g.v| ~ h^2`: 2.00 for a right gradient, whatever the
   scale, over five halvings of h.

**The tolerance** is 16 eps up to 4 layers and 64 eps up to 32 (a right float32 backward measures 1 to 3, and up to 13),
64 eps for a function that is no network. Where rounding costs more than that (terms cancel, a tanh saturates), it is
said: the distance of `jax.grad` itself from float64 is measured, and eight times it allowed. And the gradient run in
float64 must be right to one part in 10^9 of the leaf's largest entry: so no mistake hides behind float32's rounding.
Only where units are saturated is more allowed in float64, too: there the slopes in `jax.grad` are all rounding
(`1 - a^2` for tanh), and what an error of eps in every slope makes of the gradient is measured.

**Kinks.** Where a sample's `z` lies within its own rounding error of a kink, either one-sided derivative is right. Such
samples are found, counted, taken out of the batch, and judged one at a time between the gradients on the two sides. Of
a function that is no network, and of a loss, nothing is known: where a gradient is not that of `jax.grad`, the point is
pushed off its kinks, if it has any, and what lies between the gradients around it passes.

**What JAX cannot differentiate**, a function in NumPy say, is judged by the differences alone, to one part in 10^6.
"""

from funcnet.testing.functions import assert_tree_close, check_activation, check_gradients, check_loss
from funcnet.testing.kinks import find_kinks
from funcnet.testing.networks import assert_backward, check_backward, save_case
from funcnet.testing.report import Report, Row
from funcnet.testing.trees import enable_x64

__all__ = [
    "Report", "Row", "assert_backward", "assert_tree_close", "check_activation", "check_backward", "check_gradients",
    "check_loss", "enable_x64", "find_kinks", "save_case",
]  # fmt: skip
