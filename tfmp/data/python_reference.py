"""The reference of the Python language, as Python itself brings it for `help()`.

It is embedded in every Python (`pydoc_data.topics`) and differs from version to version: results
on it are of one Python version. Its sections repeat one another, so of each paragraph the first
occurrence is kept; else the test text would be known from the training text.
"""

import functools


@functools.cache
def text() -> bytes:
    """The paragraphs of all sections, by the sections' names, in UTF-8.

    Of Python 3.11.7 these are 374,153 bytes.
    """
    from pydoc_data import topics  # half a megabyte

    paragraphs: dict[str, str] = {}
    for name in sorted(topics.topics):
        for paragraph in topics.topics[name].split("\n\n"):
            paragraphs.setdefault(paragraph.strip(), paragraph)
    return "\n\n".join(paragraphs.values()).encode()
