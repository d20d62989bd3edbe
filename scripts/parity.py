"""`python -m tfmp parity`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["parity", *sys.argv[1:]])
