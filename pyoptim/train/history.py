"""What `Trainer.fit` returns."""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path
from typing import Any

from ..runtime.html import table


class History(dict[str, list[float]]):
    """What `Trainer.fit` measured: name -> one value per epoch.

    ``loss`` is the mean over the epoch's training examples, as the parameters moved; ``accuracy`` likewise
    for classification; ``val_loss`` and ``val_accuracy`` after each epoch, where there is validation
    data; ``seconds`` the training time of each epoch. With class weights a mean loss is the weighted one of
    all examples, whatever the batches. Batches that ``nonfinite="skip"`` of the optimizer left out do not
    count; NaN where it left out all.

    Attributes
    ----------
    about : str
        What was trained and how, in a few words: the title of plots.
    path : str
        What ran: ``"native"``, the compiled engine; ``"cuda"``, steps that a GPU repeats by itself; or
        ``"python"``, the generic loop.
    reason : str or None
        Why it was the generic loop.
    result : OptimizeResult or None
        Of `minimize`, which has one value per iteration: what SciPy's minimiser returned.
    """

    about = ""
    path = "python"
    reason: str | None = None
    result: Any = None

    def _repr_html_(self) -> str:
        return self._table()

    def _table(self, before: str = "") -> str:
        """Return a table for notebooks; ``before`` begins its caption."""
        rows = []
        for name, values in self.items():
            numbers = [value for value in values if isinstance(value, Real)]  # a user may have added others
            known = [value for value in numbers if not math.isnan(value)] or [math.nan]
            if len(values):
                rows.append((name, len(values), values[0], min(known), max(known), values[-1]))
        head = ("", "values", "first", "smallest", "largest", "last")
        return table(f"{before}{self.about or 'History'} ({self.path})", head, rows)

    def plot(
        self,
        path: str | Path | None = None,
        *,
        axes: Any = None,
        title: str = "",
        validation: str = "validation",
    ) -> Any:
        """Draw what was measured over the epochs; returns the figure. Needs the extra ``plot``.

        A panel for the loss, on a logarithmic axis where it is positive, one for the accuracy, and one for
        each other metric. A star marks the best epoch of the validation data. One epoch is drawn as bars.

        Parameters
        ----------
        path : str or Path, optional
            An image file to write too.
        axes : axes of matplotlib, or a sequence of them, optional
            What to draw on, a panel on each as far as they go, instead of a new figure.
        title : str
            Stands before `about`; for example, what the data are.
        validation : str, default "validation"
            What the validation data are, in words; "test" for the test set.

        Raises
        ------
        ValueError
            The history holds no epoch.
        """
        from .curves import plot_history

        return plot_history(self, path, axes, title, validation)
