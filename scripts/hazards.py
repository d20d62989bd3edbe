"""Makes docs/hazards.md of the doctor's rules."""

import pathlib

from tfmp.doctor import page

print(page.write(pathlib.Path(__file__).parents[1] / "docs"))
