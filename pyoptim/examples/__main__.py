"""``python -m pyoptim.examples NAME``: run an example, or write it as a notebook."""

from __future__ import annotations

import argparse
import ast
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILES = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem[0] != "_"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 77 where the example needs what is not here."""
    parser = argparse.ArgumentParser("python -m pyoptim.examples", description="Run an example.")
    parser.add_argument("name", nargs="?", metavar="NAME", choices=FILES, help=", ".join(FILES))
    parser.add_argument("--list", action="store_true", help="say what each example shows")
    parser.add_argument(
        "--notebook", metavar="FILE", help="write the example as a notebook, instead of running it"
    )
    options = parser.parse_args(argv)
    if options.notebook is not None and options.name is None:
        parser.error("--notebook needs the NAME of an example")
    if options.list or options.name is None:
        for name, file in FILES.items():
            print(f"{name:<20} {title(file)}")
    elif options.notebook is not None:
        text = json.dumps(notebook(FILES[options.name]), indent=1, ensure_ascii=False)
        Path(options.notebook).write_text(text + "\n", "utf-8")
    else:
        try:
            runpy.run_module(f"pyoptim.examples.{options.name}", run_name="__main__")
        except ImportError as error:
            if (error.name or "").partition(".")[0] == "pyoptim":  # which is here: this is a mistake in it
                raise
            print(f"the example {options.name} needs what is not installed: {error}", file=sys.stderr)
            return 77
    return 0


def title(file: Path) -> str:
    """Return the first line of what an example says of itself."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def notebook(file: Path) -> dict[str, Any]:
    """Return an example as a notebook: its docstring and each line ``# %%`` as text, the rest as code."""
    first, *parts = file.read_text("utf-8").split("\n# %% ")
    cells = [_cell("markdown", first.strip().strip('"').strip())]
    for part in parts:
        text, _, code = part.partition("\n")
        cells += [_cell("markdown", text), _cell("code", code.strip())]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return {
        "cells": cells,
        "metadata": {"language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    sys.exit(main())
