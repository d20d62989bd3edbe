"""`python -m tfmp matrix`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["matrix", *sys.argv[1:]])
