"""Pictures inside the page: files as they are where they are small, else as WebP; arrays as PNG."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dsengine.study.report.html import Child, Html, data_uri, figure, missing, tag

KEPT_BYTES = 150_000  # a PNG up to this size goes in as it is
MOST_PIXELS = 1800  # of a side
_QUALITY = 82


def picture(path: Path, caption: Child, *, alt: str) -> Html:
    """A figure of a picture file; where it cannot be read, why."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, height, mime = image.width, image.height, Image.MIME[image.format]
            if len(content) > KEPT_BYTES or max(image.size) > MOST_PIXELS:
                content, (width, height), mime = _smaller(content, image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, KeyError) as error:
        return missing(f"{path.name}: not a readable picture ({' '.join(str(error).split())}).")
    shown = tag("img", {"src": data_uri(content, mime), "alt": alt, "width": width, "height": height, "loading": "lazy"})
    return figure(shown, caption, kind="picture")


def array_png(values_HWC: np.ndarray) -> str:
    """A data address of (H, W, 3 or 4) values in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray((np.clip(values_HWC, 0, 1) * 255).round().astype(np.uint8)).save(file, "PNG", optimize=True)
    return data_uri(file.getvalue(), "image/png")


def _smaller(content: bytes, image: Image.Image) -> tuple[bytes, tuple[int, int], str]:
    """The same picture at most MOST_PIXELS wide, as WebP where that is smaller."""
    shown = image.convert("RGB") if image.mode not in ("RGB", "RGBA") else image.copy()
    shown.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shown.save(file, "WEBP", quality=_QUALITY, method=2)
    if file.tell() >= len(content) and shown.size == image.size:
        return content, image.size, Image.MIME[image.format]
    return file.getvalue(), shown.size, "image/webp"
