"""Pure functions of arrays that say how right and how calibrated predictions are."""
