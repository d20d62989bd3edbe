"""Whatever a file holds, as rows of a table: for what the report has no picture of."""

from tfmp.report.names import measure
from tfmp.report.sources import in_words

# Longer lists, of class names or pixels, are said by their length.
LONGEST = 20


def leaves(source, *place):
    """(name, value) of each number and word at a place of a file and below.

    Args:
        source: A `Source`.
        *place: Keys and indices.
    """
    for path, value in _walk(source.at(*place), ()):
        name = " · ".join(map(str, path)) or str(place[-1])
        number = source.number(*place, *path, unit=measure(path[-1] if path else place[-1]).unit)
        yield name, number or _words(value)


def settings(value):
    """(name, text) of each leaf of a dict, with its numbers as words."""
    return tuple((" · ".join(map(str, path)), _words(leaf)) for path, leaf in _walk(value, ()))


def _walk(value, path):
    inside = isinstance(value, list) and any(isinstance(x, (dict, list)) for x in value)
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif inside:
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))
    else:
        yield path, value


def _words(value):
    if isinstance(value, list) and len(value) > LONGEST:
        return f"{len(value)} values"
    return in_words(value)
