"""`python -m tfmp audit`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["audit", *sys.argv[1:]])
