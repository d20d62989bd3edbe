"""`python -m tfmp fallback`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["fallback", *sys.argv[1:]])
