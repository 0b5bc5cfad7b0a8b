"""For the reference: what docstrings and comments say, in the form that the site's generator understands."""

import re

import griffe


class Reference(griffe.Extension):
    """Examples as blocks of code; the comment behind a field or a constant as its description."""

    def on_object(self, *, obj, **_):
        """Look at everything that has been read from the sources."""
        if obj.docstring:  # Markdown would take >>> for quotations
            obj.docstring.value = re.sub(
                r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", obj.docstring.value, flags=re.MULTILINE | re.DOTALL
            )
        elif obj.is_attribute and (comment := re.search(r"  # (.+)", obj.source)):
            obj.docstring = griffe.Docstring(comment[1][0].upper() + comment[1][1:], parent=obj)
