"""What half precision will break in a model, found before it does."""

from tfmp.doctor.finding import Finding

__all__ = ["Finding"]
