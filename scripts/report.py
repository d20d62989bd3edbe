"""`python -m tfmp report`, for who looks for tools here."""

import sys

from tfmp.__main__ import main

main(["report", *sys.argv[1:]])
