"""Corrupted test images: made by imagecorruptions and kept on disk, or ready-made in TFDS."""

from tfmp.data.corrupted.made import Made, from_images
from tfmp.data.corrupted.ready_made import ReadyMade, ready_made

__all__ = ["Made", "ReadyMade", "from_images", "ready_made"]
