"""For the reference: what docstrings and comments say, in the form that the site's generator understands."""

import importlib
import inspect
import re

import griffe


class Reference(griffe.Extension):
    """Examples as blocks of code; for an attribute, the comment behind it, or what it says at run time."""

    def on_object(self, *, obj, **_):
        """Look at everything that has been read from the sources."""
        if obj.name.startswith("__"):  # nobody calls __repr__ by its name
            obj.public = False
        if obj.docstring:  # Markdown would take >>> for quotations
            obj.docstring.value = re.sub(
                r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", obj.docstring.value, flags=re.MULTILINE | re.DOTALL
            )
        elif obj.is_attribute and (comment := re.search(r"  # (.+)", obj.source)):
            obj.docstring = griffe.Docstring(comment[1][0].upper() + comment[1][1:], parent=obj)
        elif obj.is_attribute and obj.parent.is_module:  # a function made by another, such as an initializer
            value = getattr(importlib.import_module(obj.parent.path), obj.name)
            if inspect.isfunction(value) and value.__doc__:
                obj.docstring = griffe.Docstring(value.__doc__, parent=obj)
