"""Plant small mistakes in funcnet, one at a time, and count those that the quick tests notice.

    python scripts/checks/planted.py                       # every file, every mistake: hours on two cores
    python scripts/checks/planted.py mlp losses            # two files
    python scripts/checks/planted.py --sample 30           # thirty mistakes of each file, drawn by --seed

A mistake is one change of one expression: another operator, comparison, constant or function, a negated condition, a
dropped term or factor, two swapped arguments. Docstrings, annotations, messages and decorators are not changed. Each
mistake is tried in a separate process, in which the quick tests of that file run until the first one fails. A test
that does not end within `--seconds` counts as failed. A mistake that only other tests would notice counts as missed.

mutmut cannot do this: it changes only the bodies of functions, and funcnet's rules are values at module level.
"""

import ast
import contextlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

TESTS = {  # the tests of each file, the quickest to notice first; the file's doctests run before them
    "activations": ["activations", "gradients", "network", "testing"],
    "losses": ["losses", "gradients", "evaluation", "network", "testing"],
    "initializers": ["network", "mlp"],
    "products": ["products", "gradients", "per_sample", "sharding"],
    "mlp": ["mlp", "gradients", "network", "testing"],
    "sweeps": ["per_sample", "network"],
    "clipping": ["per_sample", "network"],
    "per_sample": ["per_sample", "network"],
    "curvature": ["per_sample", "network"],
    "optimizers": ["optimizers", "regularizers", "training"],
    "regularizers": ["regularizers", "training"],
    "batches": ["training"],
    "training": ["training", "evaluation", "regularizers", "sharding"],
    "distortions": ["distortions"],
    "sharding": ["sharding"],
}

SIGNATURES = "tests/test_package.py::test_no_public_name_or_signature_changed_by_accident"

OTHER_OPERATOR = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
PAIRS = [("sum", "mean"), ("maximum", "minimum"), ("max", "min"), ("ones", "zeros"), ("ones_like", "zeros_like"),
         ("all", "any"), ("sin", "cos"), ("exp", "expm1"), ("log", "log1p"), ("floor", "ceil"), ("argmax", "argmin"),
         ("psum", "pmean"), ("reversed", "list"), ("sqrt", "square")]  # fmt: skip
OTHER_FUNCTION = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
SYMMETRIC = {
    "max",
    "min",
    "maximum",
    "minimum",
    "isinstance",
    "getattr",
    "partial",
}  # a swap is no mistake, or pointless


class Mistake(NamedTuple):
    """One change: the position of the node in `ast.walk`, and its replacement."""

    module: str
    line: int
    node: int
    other: ast.AST
    was: str

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line}: {self.was}  ->  {text_of(self.other)}"


def text_of(node: ast.AST) -> str:
    """The code of a node; for an `if` its first line."""
    return f"if {ast.unparse(node.test)}:" if isinstance(node, ast.If) else ast.unparse(node)


def others(node: ast.AST) -> Iterator[ast.AST]:
    """The small mistakes that can be made in one node."""

    def changed(**fields):
        other = deepcopy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    match node:
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) in OTHER_OPERATOR:
                yield changed(op=OTHER_OPERATOR[type(op)]())
            if isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div):
                yield left
            if isinstance(op, ast.Add | ast.Mult) and ast.dump(left) != ast.dump(right):
                yield right
        case ast.BoolOp(op=op, values=values):
            yield changed(op=OTHER_OPERATOR[type(op)]())
            yield from values
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield changed(ops=[*ops[:i], OTHER_OPERATOR[type(op)](), *ops[i + 1 :]])
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(1.5 * value if value else 1.0)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.If(test=test):
            yield changed(test=ast.UnaryOp(ast.Not(), test))
        case ast.Call(func=func, args=args):
            name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            if name in OTHER_FUNCTION:
                field = "attr" if isinstance(func, ast.Attribute) else "id"
                other = deepcopy(func)
                setattr(other, field, OTHER_FUNCTION[name])
                yield changed(func=other)
            swapped = [*args[:2][::-1], *args[2:]]
            starred = any(isinstance(arg, ast.Starred) for arg in args[:2])
            if name not in SYMMETRIC and not starred and [*map(ast.dump, args)] != [*map(ast.dump, swapped)]:
                yield changed(args=swapped)


def left_alone(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below a node that compute nothing: annotations, decorators, messages, documentation, `__all__`."""
    match node:
        case ast.FunctionDef() | ast.ClassDef() | ast.AnnAssign() | ast.arg():
            yield from getattr(node, "decorator_list", ())
            yield from filter(None, (getattr(node, "returns", None), getattr(node, "annotation", None)))
        case ast.Assign(targets=[ast.Name(id="__all__" | "Params" | "Masks" | "Shape" | "Schedule")]) | ast.Raise():
            yield from ast.iter_child_nodes(node)
        case ast.keyword(arg="strict"):  # of zip: it only checks
            yield node.value
        case ast.JoinedStr() | ast.Subscript(value=ast.Name(id="Callable" | "tuple" | "list")):
            yield from ast.iter_child_nodes(node)


def mistakes_in(module: str) -> list[Mistake]:
    """All mistakes in a file, in its order."""
    tree = ast.parse((ROOT / "funcnet" / f"{module}.py").read_text())
    skipped = set()
    found = []
    for i, node in enumerate(ast.walk(tree)):  # a node comes before those below it
        if node in skipped:
            skipped.update(ast.iter_child_nodes(node))
            continue
        skipped.update(left_alone(node))
        line = getattr(node, "lineno", 0)
        found += [Mistake(module, line, i, other, text_of(node)) for other in others(node)]
    return sorted(found, key=lambda mistake: (mistake.line, mistake.node))


def with_mistake(source: str, mistake: Mistake) -> ast.Module:
    """The file as a tree, with the change."""
    tree = ast.parse(source)
    wanted = list(ast.walk(tree))[mistake.node]

    class Change(ast.NodeTransformer):
        def visit(self, node):
            return ast.copy_location(mistake.other, node) if node is wanted else self.generic_visit(node)

    Change().visit(tree)
    return ast.fix_missing_locations(tree)


class Loader(SourceFileLoader):
    """Loads a module of funcnet with a mistake in it."""

    def __init__(self, name: str, file: Path, mistake: Mistake):
        super().__init__(name, str(file))
        self.mistake = mistake

    def get_code(self, fullname: str):  # noqa: ARG002  there is one
        """The code of the changed file, without a cache."""
        return compile(with_mistake(self.get_data(self.path).decode(), self.mistake), self.path, "exec")


class Finder(MetaPathFinder):
    """Finds that one module; all others are found as usual."""

    def __init__(self, mistake: Mistake):
        self.mistake = mistake

    def find_spec(self, fullname, *_):
        """The spec of the module, for `import`."""
        if fullname != f"funcnet.{self.mistake.module}":
            return None
        file = ROOT / "funcnet" / f"{self.mistake.module}.py"
        return importlib.util.spec_from_file_location(fullname, file, loader=Loader(fullname, file, self.mistake))


def run_tests(mistake: Mistake | None, module: str, log: Path) -> int:
    """Run the tests in this process, which must be a new one; return 0 if none fails."""
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if mistake is not None:
        sys.meta_path.insert(0, Finder(mistake))
    import pytest

    try:
        importlib.import_module(f"funcnet.{module}")
        files = [f"funcnet/{module}.py", *(f"tests/test_{name}.py" for name in TESTS[module]), SIGNATURES]
        return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-m", "not slow and not mnist", *files])
    except BaseException as error:  # a mistake may end the import of the module, or of its tests
        print(f"{type(error).__name__}: {error}")
        return 1


def try_all(tasks: list[tuple[str, Mistake | None]], *, processes: int, seconds: float, folder: Path) -> dict[int, str]:
    """For each task `missed`, or the test that noticed it."""
    running: dict[int, tuple[int, float]] = {}
    results, waiting = {}, list(enumerate(tasks))[::-1]
    while waiting or running:
        while waiting and len(running) < processes:
            i, (module, mistake) = waiting.pop()
            pid = os.fork()
            if pid == 0:
                os.setpgrp()
                os._exit(run_tests(mistake, module, folder / f"{i}.log") and 1)
            running[pid] = i, time.monotonic()
        time.sleep(0.05)
        for pid, (i, begun) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            late = time.monotonic() - begun > seconds
            if late and not done:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if done or late:
                del running[pid]
                results[i] = "too slow" if not done else "missed" if status == 0 else first_failure(folder / f"{i}.log")
                if results[i] == "missed" or tasks[i][1] is None:
                    print(f"{results[i]}: {tasks[i][1] or tasks[i][0]}", file=sys.stderr, flush=True)
    return results


def first_failure(log: Path) -> str:
    """The test that noticed."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" - ")[0].split(" ", 1)[1] if lines else "on import"


def main() -> int:
    """Run the command line; return the number of missed mistakes, at most 100."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="file", help=f"of funcnet: {', '.join(TESTS)}; by default all")
    parser.add_argument("--sample", type=int, help="number of mistakes per file; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=2, help="number of parallel processes")
    parser.add_argument("--seconds", type=float, default=300, help="after which a test counts as failed")
    parser.add_argument("--unchecked", action="store_true", help="do not first check that the tests pass")
    parser.add_argument("--list", action="store_true", help="print the mistakes and try none")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    settings = parser.parse_args()
    modules = settings.modules or list(TESTS)
    if unknown := set(modules) - set(TESTS):
        parser.error(f"unknown file {', '.join(unknown)}, expected some of {', '.join(TESTS)}")

    tasks: list[tuple[str, Mistake | None]] = []
    for module in modules:
        found = mistakes_in(module)
        if settings.sample is not None and settings.sample < len(found):
            found = random.Random(settings.seed).sample(found, settings.sample)
        tasks += [(module, mistake) for mistake in found]
    if settings.list:
        print(*(mistake for _, mistake in tasks), sep="\n")
        return 0

    import hypothesis  # noqa: F401  import once, before the processes fork
    import jax  # noqa: F401
    import optax  # noqa: F401
    import pytest  # noqa: F401
    import scipy.special  # noqa: F401

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as name:
        # Programs that a mistake does not change are compiled once for all processes.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/cache"
        run = partial(try_all, processes=settings.processes, folder=Path(name))
        if not settings.unchecked:
            plain = run([(module, None) for module in modules], seconds=3600)
            if failed := {modules[i]: result for i, result in plain.items() if result != "missed"}:
                print(f"tests fail without any mistake: {failed}")
                return 1
        results = run(tasks, seconds=settings.seconds)

    print("| file | mistakes | noticed | missed |\n|---|---|---|---|")
    for module in [*modules, "all"]:
        own = [results[i] for i, (of, _) in enumerate(tasks) if module in (of, "all")]
        missed = own.count("missed")
        print(f"| {module} | {len(own)} | {1 - missed / max(len(own), 1):.1%} | {missed} |")
    survivors = [str(mistake) for i, (_, mistake) in enumerate(tasks) if results[i] == "missed"]
    print("\nmissed:", *survivors, sep="\n")
    if settings.out:
        rows = [{"mistake": str(mistake), "noticed by": results[i]} for i, (_, mistake) in enumerate(tasks)]
        settings.out.write_text(json.dumps(rows, indent=1))
    return min(len(survivors), 100)


if __name__ == "__main__":
    sys.exit(main())
