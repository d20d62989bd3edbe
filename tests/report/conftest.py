"""Folders of results."""

import json

import pytest


@pytest.fixture
def folder(tmp_path):
    """Writes files to a new folder and gives it."""

    def write(name, **contents):
        place = tmp_path / name
        place.mkdir()
        for file, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            suffix = "csv" if file == "metrics" else "json"
            (place / f"{file}.{suffix}").write_text(text)
        return place

    return write
