"""What `Trainer.fit` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class History(dict[str, list[float]]):
    """What `Trainer.fit` measured: name -> one value per epoch.

    ``loss`` is the mean over the epoch's training examples, as the parameters moved; ``accuracy`` likewise
    for classification; ``val_loss`` and ``val_accuracy`` after each epoch, where there is validation
    data; ``seconds`` the training time of each epoch. With class weights a mean loss is the weighted one of
    all examples, whatever the batches. Batches that ``nonfinite="skip"`` of the optimizer left out do not
    count; NaN where it left out all.

    Attributes
    ----------
    path : str
        What ran: ``"native"``, the compiled engine; ``"cuda"``, steps that a GPU repeats by itself; or
        ``"python"``, the generic loop.
    reason : str or None
        Why it was the generic loop.
    result : OptimizeResult or None
        Of `minimize`, which has one value per iteration: what SciPy's minimiser returned.
    """

    path = "python"
    reason: str | None = None
    result: Any = None

    def plot(self, path: str | Path) -> None:
        """Draw loss and accuracy over the epochs into an image file. Needs the extra ``plot``."""
        from ..runtime.figures import plot_history
        from ..runtime.numbers import check_path

        plot_history(self, check_path("path", path))
