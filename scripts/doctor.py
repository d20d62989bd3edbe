"""`python -m tfmp doctor`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["doctor", *sys.argv[1:]])
