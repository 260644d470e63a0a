"""A Matplotlib figure without pyplot, which would look for a display, and its PNG, the same bytes for the same drawing.

What is drawn is `picture`, `results` and `figures`.
"""

from __future__ import annotations

import io
from typing import Any, Literal

__all__ = ["blank", "png"]


def blank(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    """A `matplotlib.figure.Figure` of so many inches; Matplotlib is imported here, which takes a while."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def png(figure: Any, **options: Any) -> bytes:
    """The figure as a PNG; `options` are those of its `savefig`."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None}, **options)
    return drawn.getvalue()
