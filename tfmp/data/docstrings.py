"""Docstrings of Python's standard library, and which module each is from.

They are embedded in every Python that brings its library's sources, and differ from version to
version: results on them are of one Python version. The classes are the 20 modules (packages as a
whole) with the most docstrings. A docstring in several modules is left out, and one that several
objects of a module have counts once.
"""

import ast
import collections
import hashlib
import pathlib
import sys
import sysconfig

MODULES = 20
# Tests of the library, a copy of it, and jokes that act when they are imported.
LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "lib2to3", "antigravity", "this"}


def load():
    """The docstrings of the 20 modules.

    Returns:
        Lists, one item a docstring: the texts, their modules' names, and the qualified name of the
        function or class of a file that each is of, or is in.
    """
    found: dict[str, dict[str, tuple]] = collections.defaultdict(dict)
    for module, file in _files():
        for owner, text in _docstrings(file):
            found[" ".join(text.split())].setdefault(module, (owner, text))
    alone = [(*next(iter(x.items())),) for x in found.values() if len(x) == 1]
    counts = collections.Counter(module for module, _ in alone)
    largest = sorted(counts, key=lambda name: (-counts[name], name))[:MODULES]
    kept = sorted((m, owner, text) for m, (owner, text) in alone if m in largest)
    return [t for *_, t in kept], [m for m, *_ in kept], [f"{m}:{o}" for m, o, _ in kept]


def _files():
    """(module, path) of the library's sources."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in LEFT_OUT:
            continue
        if (root / f"{name}.py").is_file():
            yield name, root / f"{name}.py"
        for path in sorted((root / name).rglob("*.py")):
            if not LEFT_OUT & set(path.relative_to(root).parts):
                yield name, path


def _docstrings(file):
    """(outermost function or class, docstring) of a source."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # some are there to be refused
    documented = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    if text := ast.get_docstring(tree):
        yield str(file.stem), text
    for outer in tree.body:
        if isinstance(outer, documented):
            for node in ast.walk(outer):
                if isinstance(node, documented) and (text := ast.get_docstring(node)):
                    yield f"{file.stem}.{outer.name}", text


def draw(owner):
    """A number from 0 to below 1 that is always the same for an owner."""
    return int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8]) / 2**64
