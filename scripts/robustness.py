"""`python -m tfmp robustness`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["robustness", *sys.argv[1:]])
