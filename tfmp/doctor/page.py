"""docs/hazards.md, made of the rules' docstrings."""

import inspect
import pathlib

from tfmp.doctor.rules import RULES

HEAD = """# Hazards of half precision

What `tfmp.doctor.diagnose` and `python -m tfmp doctor` look for. An *error* will break or is
silently wrong, a *warning* breaks for some inputs, an *info* costs speed or memory. The examples
break on TensorFlow 2.21 and Keras 3.15; `tests/doctor/cases/` has further models that break, and
look-alikes that are right. Examples assume

    import keras
    import numpy as np
    import tensorflow as tf
    import tfmp

This page is made of the rules' docstrings by `python scripts/hazards.py`; change those.
"""
SECTIONS = {"Example:": "python", "Mend:": None, "References:": None}


def page() -> str:
    """The page, in Markdown."""
    names = "\n".join(f"- [{name}](#{name}): {_lines(name)[0]}" for name in RULES)
    return "\n".join([HEAD, names, *map(section, RULES)]) + "\n"


def write(folder) -> pathlib.Path:
    """Writes the page into a folder, as hazards.md."""
    file = pathlib.Path(folder) / "hazards.md"
    file.write_text(page(), encoding="utf-8")
    return file


def example(name: str) -> str:
    """The example of a rule, as a program."""
    lines = _lines(name)
    return _block(lines, lines.index("Example:"))


def section(name: str) -> str:
    """What the page says of a rule, in Markdown."""
    lines = _lines(name)
    starts = [index for index, line in enumerate(lines) if line in SECTIONS]
    text = [f"\n## {name}", "", *lines[: starts[0]]]
    for start in starts:
        block = _block(lines, start)
        if lines[start] == "Example:":
            text += ["```python", block, "```", ""]
        elif lines[start] == "Mend:":
            text += [f"**Mend.** {block}", ""]
        else:
            text += ["*Source:*", "", *(f"- {entry}" for entry in _entries(block))]
    return "\n".join(text).rstrip()


def _block(lines, start) -> str:
    """The indented lines behind a heading."""
    rest = lines[start + 1 :]
    end = next((i for i, line in enumerate(rest) if line and not line.startswith(" ")), len(rest))
    return inspect.cleandoc("\n".join(["", *rest[:end]]))


def _entries(block) -> list[str]:
    """References, of which one may go on in an indented line."""
    entries: list[str] = []
    for line in block.splitlines():
        if line.startswith(" "):
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line)
    return entries


def _lines(name) -> list[str]:
    return inspect.cleandoc(RULES[name].__doc__ or "").splitlines()
