"""The pages of the documentation: every block of Python runs, page by page, as a reader would run it.

Each block of README.md runs alone. The pages are slow, but for one; a quick test sees to it that each defines names
before it uses them.
"""

import ast
import builtins
import contextlib
import importlib.util
import io
import json
import re
import warnings
from pathlib import Path

import jax
import pytest

import funcnet

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "scripts" / "docs"
PAGES = {str(path.relative_to(DOCS / "pages")): path for path in sorted((DOCS / "pages").rglob("*.md"))}
README = re.findall(  # the blocks, and what they print
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
)
NOTEBOOK = DOCS / "pages" / "quickstart.ipynb"
HEAVY = {"equinox", "flax", "torch"}  # not in the extra `test`


@pytest.fixture(autouse=True)
def as_a_user():
    """JAX as it comes, without this suite's strictness; and the libraries' own deprecations are not ours."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def hooks():
    specification = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(blocks, name):
    namespace = {"__name__": name}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


def blocks_of(text):
    return re.findall(r"^```python[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def defined(tree):
    """The names that a block defines, in whatever scope."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def used(tree):
    """The names that a block mentions."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_defines_what_it_uses(page, hooks):
    names = set(dir(builtins))
    for block in blocks_of(hooks.on_page_markdown(PAGES[page].read_text())):
        tree = ast.parse(block, page)
        names |= set(defined(tree))
        assert used(tree) <= names


# The others show again what the quick tests know; the blocks of index.md are the README's.
QUICK = "conventions.md"


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page != QUICK)) for page in PAGES])
def test_every_block_of_a_page_runs(page, hooks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    text = PAGES[page].read_text()
    assert not re.search(r"^\{\{", hooks.on_page_markdown(text), re.MULTILINE)
    blocks = blocks_of(text)
    wanted = {name for name in HEAVY if re.search(rf"^(import|from) {name}\b", "\n".join(blocks), re.MULTILINE)}
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    run(blocks, page)


@pytest.mark.parametrize("number", range(len(README)))
def test_a_block_of_the_readme_runs_alone(number, tmp_path, monkeypatch, capsys):
    """And prints what stands below it, but for the last digits."""
    monkeypatch.chdir(tmp_path)
    block, printed = README[number]
    run([block], "README.md")
    words = capsys.readouterr().out.split()
    assert len(words) >= 1
    if printed:
        assert [word for word in printed.split() if word.isalpha()] == [word for word in words if word.isalpha()]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_reference_has_every_module():
    pages = "\n".join(path.read_text() for name, path in PAGES.items() if name.startswith("api"))
    named = re.findall(r"^::: funcnet\.(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(funcnet._SUBMODULES)


@pytest.mark.slow
def test_the_notebook_runs():
    """Its cells in order, then each again from the last to the first; they print what is kept, but for digits."""
    namespace = {"__name__": "quickstart.ipynb"}
    cells = [
        (re.sub(r"^%.*$", "", "".join(cell["source"]), flags=re.MULTILINE), cell["outputs"])
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    for source, outputs in cells + cells[::-1]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, "quickstart.ipynb", "exec"), namespace)
        kept = "".join(text for output in outputs for text in output.get("text", ()))
        assert words_of(printed.getvalue()) == words_of(kept)


def words_of(text):
    return [word for word in text.split() if word.isalpha()]


def test_the_notebook_keeps_its_outputs():
    """Also its pictures; and nothing of the machine that drew them."""
    text = NOTEBOOK.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells[1:])
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert sum("image/png" in output.get("data", ()) for cell in cells for output in cell["outputs"]) == 3
    assert not re.search(r"/(tmp|home|root|usr|work)/|stderr", text)
    assert not any(cell["metadata"] for cell in cells)  # when each of them ran


def test_a_wrong_marker_stops_the_build(hooks):
    for line, message in (
        ("{{ sauce: funcnet.mlp.init }}", "expected readme, changelog, figures, source or line"),
        ("  {{readne}}", "expected readme"),
        ("{{ line: funcnet.mlp.backward: no such }}", "not enough values"),
    ):
        with pytest.raises(ValueError, match=message):
            hooks.on_page_markdown(line)
    with pytest.raises(AttributeError):
        hooks.on_page_markdown("{{ source: funcnet.mlp.nothing }}")
