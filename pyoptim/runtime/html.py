"""Tables that notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in HTML. Texts are escaped; columns of numbers stand on the right."""
    from html import escape  # costs what `import pyoptim` need not

    numbers = [not isinstance(cell, str) for cell in rows[0]] if rows else [False] * len(head)

    def row(tag: str, cells: Sequence[Any]) -> str:
        made = ""
        for cell, is_number in zip(cells, numbers, strict=True):
            text = cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"
            made += f'<{tag} style="text-align:{"right" if is_number else "left"}">{escape(text)}</{tag}>'
        return f"<tr>{made}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    top = f"<caption>{escape(caption)}</caption><thead>{row('th', head)}</thead>"
    return f"<table>{top}<tbody>{body}</tbody></table>"
