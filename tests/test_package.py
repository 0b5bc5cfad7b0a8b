"""What an import costs, what is public, and that the documentation is true."""

import ast
import importlib
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from public_names import public_names

import funcnet

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "funcnet"
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
# Each imports only those before it, and so do the parts of those that are packages.
ORDER = ["activations", "losses", "initializers", "network", "arguments", "table", "products", "calls", "mlp", "sweeps",
         "clipping", "per_sample", "curvature", "schedules", "optimizers", "regularizers", "evaluation", "batches",
         "training", "sharding", "distortions", "extras", "files", "datasets", "described", "weights", "exchange",
         "checkpoints", "plotting", "testing"]  # fmt: skip
PARTS = {
    "datasets": ["idx", "arrays", "own_files", "__init__"],
    "exchange": ["checks", "torch_tensors", "torch_module", "torch", "sklearn", "onnx", "onnx_nodes", "from_onnx",
                 "stablehlo", "__init__"],
    "checkpoints": ["fingerprints", "leaves", "damage", "notes", "__init__"],
    "testing": ["trees", "causes", "report", "derivatives", "subgradients", "differences", "ladder", "kinks",
                "functions", "networks", "point", "suspects", "behaviour", "reverse", "forward", "rules", "__init__",
                "__main__"],
}  # fmt: skip
# Only others use them.
INTERNAL = {"arguments", "batches", "calls", "clipping", "described", "extras", "files", "sweeps", "table"}
MODULES = [f"funcnet.{name}" for name in ORDER]
MODULES += [f"funcnet.{package}.{name}" for package in PARTS for name in PARTS[package] if name != "__init__"]


def source_of(name):
    path = ROOT / name.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def in_a_new_process(code):
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:funcnet", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_an_import_pulls_in_no_extra():
    """Of any module: one after the other in one process, each of them told what the imports so far have loaded."""
    code = (
        "import importlib, sys\n"
        f"for name in {['funcnet', *MODULES]}:\n"
        "    importlib.import_module(name)\n"
        f"    print(name, *{EXTRAS} & set(sys.modules), sep=':')"
    )
    assert in_a_new_process(code) == ["funcnet", *MODULES]


def test_submodules_are_there_without_being_imported():
    """What `import funcnet` needs not is loaded where it is first used, and is listed before."""
    code = (
        "import sys, funcnet\n"
        "assert 'testing' in dir(funcnet) and 'funcnet.testing' not in sys.modules\n"
        f"assert set({ORDER}) - {INTERNAL} <= set(dir(funcnet)), dir(funcnet)\n"
        "funcnet.testing.check_activation; assert 'funcnet.testing' in sys.modules\n"
        f"print(*(getattr(funcnet, name).__name__ for name in {ORDER} if name not in {INTERNAL}))"
    )
    assert in_a_new_process(code) == [f"funcnet.{name}" for name in ORDER if name not in INTERNAL]
    assert set(funcnet.__all__) <= set(dir(funcnet))
    with pytest.raises(AttributeError, match="module 'funcnet' has no attribute 'validation'"):
        _ = funcnet.validation


def imported(source, package):
    """The modules of a package that a source imports: `from package.x import y`, `from package import x`."""
    found = re.findall(
        rf"^ *from {package}\.(\w+)[.\w]* import|^ *from {package} import ([\w, ]+)", source, re.MULTILINE
    )
    return {name.strip() for a, b in found for name in (a or b).split(",")}


def test_arrows_go_one_way():
    """A module imports only those before it, and so within a package."""
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(packages) == sorted(PARTS)
    assert sorted(ORDER) == sorted([*(path.stem for path in PACKAGE.glob("[a-z]*.py")), *packages])
    for i, name in enumerate(ORDER):
        parts = PARTS.get(name, [])
        if parts:
            assert sorted(parts) == sorted(path.stem for path in (PACKAGE / name).glob("*.py"))
        for j, part in enumerate(parts or [None]):
            source = (PACKAGE / name / f"{part}.py").read_text() if part else source_of(f"funcnet.{name}")
            assert imported(source, "funcnet") <= {*ORDER[:i], *([name] if parts else [])}, name
            assert imported(source, rf"funcnet\.{name}") <= set(parts[:j]), (name, part)
            assert name == "testing" or not re.search(r"^ *import funcnet", source, re.MULTILINE), name


def test_no_derivative_rule_is_registered():
    for path in PACKAGE.rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert names.isdisjoint({"custom_vjp", "custom_jvp", "defvjp", "defjvp", "custom_gradient"})


@pytest.mark.parametrize("name", ["funcnet", *MODULES])
def test_all_says_what_is_public(name):
    module = importlib.import_module(name)
    if name.rpartition(".")[0] != "funcnet" and not hasattr(module, "__all__"):
        return  # its public names are those of the package
    assert len(set(module.__all__)) == len(module.__all__) > 0
    assert all(hasattr(module, public) for public in module.__all__)


def test_no_public_name_or_signature_changed_by_accident():
    """On purpose: `python tests/public_names.py > tests/public_names.txt`, and a line in the changelog."""
    assert public_names() == (ROOT / "tests" / "public_names.txt").read_text().splitlines()


NO_EXAMPLE = {"load_fashion_mnist", "load_mnist", "main", "matrix", "save_case"}  # they need files, or minutes


def functions():
    """All functions but private ones, and whether each is public: those of `testing` are what the package offers."""
    for name in MODULES:
        module = importlib.import_module(name)
        package = importlib.import_module(name.rpartition(".")[0])
        public = getattr(module, "__all__", [*package.__all__, "matrix", "main"])
        for node in ast.parse(source_of(name)).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield pytest.param(node, node.name in public, id=f"{name.removeprefix('funcnet.')}.{node.name}")


@pytest.mark.parametrize(("node", "public"), [*functions()])
def test_a_function_is_documented(node, public):
    """One line; a public one has an example that is run, and says what can go wrong, maybe by reference to another."""
    text = ast.get_docstring(node)
    assert text
    assert text.splitlines()[0].rstrip().endswith((".", ":", "`")), "the first line is not a sentence"
    if public:
        assert ">>> " in text or node.name in NO_EXAMPLE
        raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        assert not raises or "Raises:" in text or "errors as in" in text.lower()


def test_the_signature_in_the_help_is_one_short_line():
    text = pydoc.plain(pydoc.render_doc(funcnet.backward))
    (signature,) = [line for line in text.splitlines() if line.startswith("backward(")]
    assert "network: 'Network' = Network(), *, masks" in signature
    assert len(signature) <= 200
    assert not re.search(r"Activation\(|Loss\(|<function| at 0x", text)


def test_types_are_shipped():
    assert (ROOT / "funcnet" / "py.typed").exists()
