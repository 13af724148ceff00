"""The progress bar of a training."""

from __future__ import annotations


class Progress:
    """A bar over all examples of all epochs, with what the last epoch measured."""

    def __init__(self, epochs: int, examples: int, enabled: bool) -> None:
        self._epochs, self._bar = epochs, None
        if enabled:
            from tqdm import tqdm

            self._bar = tqdm(
                total=epochs * examples, unit=" examples", unit_scale=True, desc=f"epoch 1/{epochs}"
            )

    def advance(self, examples: int) -> None:
        if self._bar is not None:
            self._bar.update(examples)

    def end_epoch(self, epoch: int, measured: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {min(epoch + 2, self._epochs)}/{self._epochs}", refresh=False)
            shown = {name: f"{value:.4f}" for name, value in measured.items() if name != "seconds"}
            self._bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
