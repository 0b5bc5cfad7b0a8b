"""What the documentation takes from elsewhere in the repository, so that nothing is said twice, and its formulas.

In a page, a line `{{ readme: Heading }}` stands for that section of README.md, `{{ changelog: }}` for CHANGELOG.md,
`{{ figures: FILE: SUITE }}` for the table of a suite of scripts/benchmarks/results/FILE.json,
`{{ source: funcnet.mlp.backward_sweep }}` for the source of that function, and `{{ line: FUNCTION: START }}` for its
line that starts so. LaTeX becomes MathML, which browsers draw by themselves. Extras are
imported inside the functions: the tests read the pages without them.
"""

import html
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def on_files(files, config):
    """The pictures stay where the scripts put them."""
    from mkdocs.structure.files import File

    for picture in sorted((ROOT / "scripts" / "pictures").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, **_):
    """Put in what the lines in braces stand for."""
    return re.sub(r"^[ \t]*\{\{.*$", lambda match: _taken(match[0]), markdown, flags=re.MULTILINE)


def on_page_content(content, page, **_):
    """Every formula as MathML."""
    for tag, display, begin, end in (("span", "inline", r"\(", r"\)"), ("div", "block", r"\[", r"\]")):
        pattern = rf'<{tag} class="arithmatex">\s*{re.escape(begin)}(.*?){re.escape(end)}\s*</{tag}>'
        content = re.sub(pattern, lambda match, display=display: _mathml(match[1], display), content, flags=re.DOTALL)
    if 'class="arithmatex"' in content:
        raise ValueError(f"{page.file.src_uri}: a formula was not understood")
    return content


def _mathml(latex, display):
    from latex2mathml.converter import convert

    formula = convert(html.unescape(latex), display=display)
    return f'<div class="formula">{formula}</div>' if display == "block" else formula


def _taken(line):
    kind, _, name = line.strip().removeprefix("{{").removesuffix("}}").strip().partition(":")
    if kind == "readme":
        return section((ROOT / "README.md").read_text(), name.strip())
    if kind == "changelog":
        return (ROOT / "CHANGELOG.md").read_text().split("\n", 1)[1]
    if kind == "source":
        return f"```py\n{_source(name.strip())}```"  # not `python`: the tests run what is
    if kind == "figures":
        file, suite = (part.strip() for part in name.split(":"))
        return _figures(ROOT / "scripts" / "benchmarks" / "results" / f"{file}.json", suite)
    if kind == "line":
        function, _, start = (part.strip() for part in name.partition(":"))
        (found,) = [text.strip() for text in _source(function).splitlines() if text.strip().startswith(start)]
        return f"```py\n{found}\n```"
    raise ValueError(f"{line!r}: expected readme, changelog, figures, source or line, and a colon")


def _figures(path, suite):
    sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
    import timing

    kept = json.loads(path.read_text())
    about = f"`{kept['command']}`, {kept['date']}, {', '.join(f'{k} {v}' for k, v in kept['machine'].items())}"
    return f"{timing.markdown([timing.Row(**row) for row in kept['suites'][suite]])}\n{about}"


def _source(name):
    module, _, function = name.rpartition(".")
    return inspect.getsource(getattr(importlib.import_module(module), function))


def section(readme, heading):
    """A section of the README without its heading, its links made to fit."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
    if not found:
        raise ValueError(f"README.md has no section {heading!r}")
    return found[1].replace("](scripts/pictures/", "](pictures/").replace("```python exchange", "```python")
