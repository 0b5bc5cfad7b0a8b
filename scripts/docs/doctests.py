"""For the reference: the examples of a docstring as blocks of code, which Markdown would take for quotations."""

import re

import griffe


class Doctests(griffe.Extension):
    """Put every paragraph that starts with `>>>` into a fence."""

    def on_object(self, *, obj, **_):  # noqa: D102
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", obj.docstring.value, flags=re.MULTILINE | re.DOTALL
            )
