"""A figure of matplotlib that a notebook shows; a module of its own, since it needs matplotlib."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure without a display or pyplot's global state; a notebook shows it as the value of a cell."""

    def _repr_png_(self) -> bytes:
        # Notebooks ask for this where pyplot, whose backend knows how to show figures, was not imported.
        image = BytesIO()
        self.savefig(image, format="png", dpi=80)
        return image.getvalue()
