"""Tables that notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in HTML. Texts are escaped; columns of numbers stand on the right.

    A cell that is neither a text nor a real number is shown by its ``repr``.
    """
    from html import escape  # costs what `import pyoptim` need not

    numbers = [not isinstance(cell, str) for cell in rows[0]] if rows else [False] * len(head)

    def row(tag: str, cells: Sequence[Any]) -> str:
        made = ""
        for cell, is_number in zip(cells, numbers, strict=True):
            side = "right" if is_number else "left"
            made += f'<{tag} style="text-align:{side}">{escape(_text(cell))}</{tag}>'
        return f"<tr>{made}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    top = f"<caption>{escape(caption)}</caption><thead>{row('th', head)}</thead>"
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _text(cell: Any) -> str:
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, Real):
        return f"{cell:.4g}"
    return cell if isinstance(cell, str) else f"{cell!r:.100}"
