"""The public modules of the package."""

from pathlib import Path

import pyoptim as po

# A file directly in the package is a public name; these folders are too.
MODULES = sorted(
    {path.stem for path in Path(po.__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    | {"datasets", "diagnostics", "nn", "ops", "recipes", "sklearn"}
)
