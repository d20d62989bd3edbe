"""Pure functions of arrays that say how good, calibrated and alike predictions are."""
