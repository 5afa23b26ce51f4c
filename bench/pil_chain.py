"""The augmentation as a plain data set does it: a sample at a time, each jitter on an 8-bit image of three bands.

The steps of torchvision's ColorJitter on PIL images (whose own calls these are), ten on random triples of bands for each
view, as in DeepSentinel's loader. In a module of its own so that worker processes can import it.
"""

import numpy as np
from PIL import Image, ImageEnhance


def jitter(image: Image.Image, brightness: float, contrast: float, saturation: float, hue: float) -> Image.Image:
    """Brightness, contrast, saturation factors; hue in cycles."""
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    image = ImageEnhance.Color(image).enhance(saturation)
    h, s, v = image.convert("HSV").split()
    turned = (np.asarray(h, dtype=np.int16) + round(hue * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")


def view(crop: np.ndarray, triples: np.ndarray, factors: np.ndarray, keep: np.ndarray, mean: np.ndarray,
         std: np.ndarray) -> np.ndarray:
    """(S, S, C) uint8 to an augmented, z-scored, dropped (C, S, S) float32."""
    crop = crop.copy()
    for triple, factor in zip(triples, factors):
        crop[:, :, triple] = np.asarray(jitter(Image.fromarray(crop[:, :, triple]), *factor))
    return ((crop.astype(np.float32) - mean) / std * keep).transpose(2, 0, 1)


def sample(image: np.ndarray, views: list[tuple], size: int, mean: np.ndarray, std: np.ndarray) -> float:
    """All views of one (P, P, C) uint8 sample, each (offset, triples, factors, keep); returns a checksum, not the views.

    Returning little is to this form's advantage: handing the views to the training process is not timed.
    """
    total = 0.0
    for (y, x), triples, factors, keep in views:
        total += float(view(image[y:y + size, x:x + size], triples, factors, keep, mean, std).sum())
    return total
