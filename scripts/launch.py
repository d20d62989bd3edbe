"""`python -m tfmp launch`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["launch", *sys.argv[1:]])
