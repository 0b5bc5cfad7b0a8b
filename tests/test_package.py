"""What an import costs, what is public, and that the documentation is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXTRAS = {
    "optax",
    "orbax",
    "matplotlib",
    "pooch",
    "safetensors",
    "sklearn",
    "tqdm",
    "tyro",
    "pytest",
    "torch",
    "onnx",
    "hypothesis",
}
MODULES = sorted(path.stem for path in (ROOT / "funcnet").glob("[a-z]*.py"))


@pytest.mark.parametrize("module", ["funcnet", *(f"funcnet.{name}" for name in MODULES)])
def test_an_import_pulls_in_no_extra(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert EXTRAS.isdisjoint(loaded)
    assert module in loaded


def test_arrows_go_one_way():
    """A module imports only those before it."""
    order = ["activations", "losses", "initializers", "validation", "mlp", "per_sample", "curvature", "optimizers",
             "regularizers", "training", "sharding", "distortions", "extras", "datasets", "io", "checkpoints",
             "plotting", "ladder", "kinks", "testing"]  # fmt: skip
    assert sorted(order) == MODULES
    for i, name in enumerate(order):
        source = (ROOT / "funcnet" / f"{name}.py").read_text()
        imports = re.findall(r"^from funcnet\.(\w+) import|^from funcnet import (\w+)", source, re.MULTILINE)
        assert {a or b for a, b in imports} <= set(order[:i])


def test_no_derivative_rule_is_registered():
    for path in (ROOT / "funcnet").glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert names.isdisjoint({"custom_vjp", "custom_jvp", "defvjp", "defjvp", "custom_gradient"})


INTERNAL = {  # of `mlp` and `per_sample`: shared by modules, not for users
    "prepare", "targets_and_shares", "forward_sweep", "backward_sweep", "layer_inputs", "layer_gradient",
    "summed_products", "product", "masked", "like", "sweeps"}  # fmt: skip
NO_EXAMPLE = {"load_mnist", "main", "matrix", "save_case", "write_atomically"}  # they need files, or minutes


def public_functions():
    for module in sorted(set(MODULES) - {"validation", "extras", "ladder", "kinks"}):  # what these hold is for others
        for node in ast.parse((ROOT / "funcnet" / f"{module}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in INTERNAL:
                yield pytest.param(node, id=f"{module}.{node.name}")


@pytest.mark.parametrize("node", [*public_functions()])
def test_a_public_function_is_documented(node):
    """One line, an example that is run, and what can go wrong; arguments may be explained by reference to another."""
    text = ast.get_docstring(node)
    assert text
    assert text.splitlines()[0].rstrip().endswith((".", ":", "`")), "the first line is not a sentence"
    if node.name not in NO_EXAMPLE:
        assert ">>> " in text
    raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    assert not raises or "Raises:" in text or "errors as in" in text.lower()


def test_types_are_shipped():
    assert (ROOT / "funcnet" / "py.typed").exists()


def test_every_python_block_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
