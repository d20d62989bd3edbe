"""`python -m tfmp evaluate`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["evaluate", *sys.argv[1:]])
