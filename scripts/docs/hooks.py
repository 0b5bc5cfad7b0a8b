"""What the documentation takes from elsewhere in the repository, so that nothing is said twice, and its formulas.

In a page, a line `{{ readme: }}` stands for README.md and `{{ changelog: }}` for CHANGELOG.md, without their titles,
`{{ figures: FILE: SUITE }}` for the table of a suite of scripts/benchmarks/results/FILE.json,
`{{ source: funcnet.mlp.backward_sweep }}` for the source of that function, and `{{ line: FUNCTION: START }}` for its
line that starts so. LaTeX becomes MathML, which browsers draw by themselves; the site brings a font for it. Extras are
imported inside the functions: the tests read the pages without them.

The README leads to the pages as they lie in the repository, too: there a line has a link before its marker, which is in
a comment, `[file](path)<!--{{ source: ... }}-->`, and pictures are at `../../pictures/`.
"""

import html
import importlib
import inspect
import io
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
    files.append(File.generated(config, "math.woff", content=_font()))
    return files


def on_page_markdown(markdown, **_):
    """Put in what the lines in braces stand for, and the pictures."""
    markdown = markdown.replace("](../../pictures/", "](pictures/")
    return re.sub(r"^[ \t]*(\[.*<!--)?\{\{.*$", lambda match: _taken(match[0]), markdown, flags=re.MULTILINE)


def on_page_content(content, page, **_):
    """Every formula as MathML, in one line with the comma after it; and no line ends within a short piece of code."""
    for tag, display, begin, end in (("span", "inline", r"\(", r"\)"), ("div", "block", r"\[", r"\]")):
        pattern = rf'<{tag} class="arithmatex">\s*{re.escape(begin)}(.*?){re.escape(end)}\s*</{tag}>([.,;:)]*)'
        content = re.sub(
            pattern, lambda match, display=display: _mathml(match[1], display, match[2]), content, flags=re.DOTALL
        )
    if 'class="arithmatex"' in content:
        raise ValueError(f"{page.file.src_uri}: a formula was not understood")
    return re.sub("<code>(?=[^<]{1,24}</code>)", '<code class="short">', content)


def _font():
    """STIX Two Math with the characters of formulas alone, for style.css; its licence (SIL OFL 1.1) is in its names.

    The whole font comes with the package ziamath and has 1.5 MB.
    """
    from fontTools import subset
    from ziamath import fonts

    ranges = ((0x20, 0x7E), (0xA0, 0xFF), (0x391, 0x3F6), (0x2010, 0x2026), (0x2032, 0x2034), (0x2061, 0x2064),
              (0x210E, 0x2113), (0x2190, 0x21D5), (0x2200, 0x22FF), (0x2308, 0x230B), (0x27E8, 0x27E9),
              (0x1D400, 0x1D467), (0x1D6A4, 0x1D71B))  # fmt: skip
    options = subset.Options(flavor="woff", name_IDs=["*"], layout_features=[], notdef_outline=True, hinting=False)
    font = subset.load_font(str(Path(fonts.__file__).with_name("STIXTwoMath-Regular.ttf")), options)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=[code for first, last in ranges for code in range(first, last + 1)])
    cut.subset(font)
    whole = io.BytesIO()
    subset.save_font(font, whole, options)
    return whole.getvalue()


def _mathml(latex, display, after):
    from latex2mathml.converter import convert

    formula = convert(html.unescape(latex), display=display)
    formula = formula.replace('<mo stretchy="false">&#x0007C;', '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;')
    if display == "block":
        return f'<div class="formula">{formula}</div>{after}'
    if len(latex) > 40:  # maybe wider than a phone
        formula = f'<span class="long-formula">{formula}</span>'
    return f'<span class="together">{formula}{after}</span>' if after else formula


def _taken(line):
    kind, _, name = line.partition("{{")[2].partition("}}")[0].strip().partition(":")
    if kind == "readme":
        return _with_links_of_the_site(_without_title("README.md"))
    if kind == "changelog":
        return _without_title("CHANGELOG.md")
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


def _without_title(name):
    return (ROOT / name).read_text().split("\n", 1)[1]


def _with_links_of_the_site(text):
    """Pages and pictures lie elsewhere here; files that the site does not have are named alone."""
    text = text.replace("](scripts/pictures/", "](pictures/").replace("](scripts/docs/pages/", "](")
    return re.sub(r"\[(`[^`]+`)\]\((?!http)[^)]*\)", r"\1", text)
