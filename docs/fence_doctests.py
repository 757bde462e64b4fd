"""For the site's generator: show doctests in docstrings as code."""

from typing import Any

import griffe


class FenceDoctests(griffe.Extension):
    """Put fences around every example that begins with a prompt."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Change the docstring of an object."""
        del options
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Return the text with a fence around each example, up to the next blank line."""
    lines: list[str] = []
    inside = ""
    for line in [*text.splitlines(), ""]:
        indent = line[: len(line) - len(line.lstrip())]
        if not inside and line.lstrip().startswith(">>> "):
            inside = indent + "```"
            lines.append(inside + "pycon")
        if inside and not line.strip():
            lines.append(inside)
            inside = ""
        lines.append(line)
    return "\n".join(lines[:-1])
