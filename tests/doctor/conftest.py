"""The models of `cases` are imported by their own name, whatever the working directory."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
