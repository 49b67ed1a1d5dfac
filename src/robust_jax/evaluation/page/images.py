"""Images, differences and flows as small pictures inside of the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from robust_jax.evaluation import drawing

_LARGE = 160  # the longest side of an embedded image, in pixels


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def image(values: np.ndarray) -> dict[str, Any]:
    """An image ``[H, W, 1 or 3]`` in [0, 1] for the page; values that are not finite are black."""
    safe = np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    pixels = np.clip(np.rint(safe * 255), 0, 255).astype(np.uint8)
    return _tile(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def difference(change: np.ndarray, scale: float) -> dict[str, Any]:
    """A signed change ``[H, W, 1 or 3]`` on a symmetric scale: blue to red around white, or RGB around grey."""
    share = np.nan_to_num(np.asarray(change, np.float32)) / (2 * scale) + 0.5
    if change.shape[-1] == 1:
        return _tile((255 * drawing.SIGNED(np.clip(share[..., 0], 0, 1))[..., :3]).astype(np.uint8))
    return image(share)


def _tile(pixels: np.ndarray) -> dict[str, Any]:
    picture = Image.fromarray(pixels)
    if max(picture.size) > _LARGE:
        picture.thumbnail((_LARGE, _LARGE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return {"src": data_uri(content.getvalue()), "width": picture.width, "height": picture.height}


def arrows(flow: np.ndarray, magnify: float, stride: int) -> Markup:
    """A flow ``[H, W, 2]`` of (dy, dx) as arrows, from a pixel to the place that its new value is taken from."""
    height, width = flow.shape[:2]
    wedges = []
    for row in range(stride // 2, height, stride):
        for column in range(stride // 2, width, stride):
            dy, dx = (float(v) * magnify for v in np.nan_to_num(flow[row, column]))
            wedges.append(_wedge(column + 0.5, row + 0.5, dx, dy, stride))
    return Markup(  # noqa: S704 - numbers alone
        f'<svg class="arrows" viewBox="0 0 {width} {height}" aria-hidden="true"><path d="{"".join(wedges)}"/></svg>'
    )


def _wedge(x: float, y: float, dx: float, dy: float, stride: int) -> str:
    """The path of an arrow without a head, which tapers to its point: readable in a few pixels."""
    length = float(np.hypot(dx, dy))
    if length < 0.08 * stride:
        return ""
    across, down = -0.15 * stride * dy / length, 0.15 * stride * dx / length
    return f"M{x - across:.3g} {y - down:.3g}L{x + dx:.3g} {y + dy:.3g}L{x + across:.3g} {y + down:.3g}z"


def gallery(examples: dict[str, np.ndarray], count: int) -> dict[str, Any]:
    """The tiles of examples: clean image, adversarial image, what changed; and the scale of the last.

    Args:
      examples: of `robust_jax.evaluation.drawn`.
      count: of examples, at most.
    """
    clean, adversarial = (np.asarray(examples[k], np.float32)[:count] for k in ("clean", "adversarial"))
    if clean.ndim != 4 or clean.shape != adversarial.shape or clean.shape[-1] not in (1, 3):
        raise ValueError(f"images of shapes {clean.shape} and {adversarial.shape}")
    flow = None if "flow" not in examples else np.asarray(examples["flow"], np.float32)[:count]
    scale = float(np.nan_to_num(np.abs(adversarial - clean)).max()) or 1.0
    found: dict[str, Any] = {"scale": f"±{scale:.2g}", "cards": [], "grey": clean.shape[-1] == 1}
    if flow is not None:
        magnify, stride = drawing.arrow_scale(flow)
        found |= {"magnify": f"{magnify:.3g}", "longest": f"{float(np.max(np.linalg.norm(flow, axis=-1))):.3g}"}
    for i in range(len(clean)):
        card: dict[str, Any] = {
            "clean": image(clean[i]),
            "adversarial": image(adversarial[i]),
            "difference": difference(adversarial[i] - clean[i], scale),
        }
        if flow is not None:
            card |= {"pale": image(0.7 + 0.3 * clean[i]), "arrows": arrows(flow[i], magnify, stride)}
        found["cards"].append(card)
    return found
