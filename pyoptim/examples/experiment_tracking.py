"""Curves of several trainings side by side, in TensorBoard (or MLflow: put its callback in the list)."""

# %% Where the curves go: a folder for each training.
import tempfile
from pathlib import Path

import pyoptim as po
from pyoptim import callbacks, nn

data = po.datasets.load("digits", flatten=True, normalize=True)
logs = Path(tempfile.mkdtemp(prefix="pyoptim-runs-"))

# %% The same network with three optimizers.
accuracy = {}
for kind, lr in ((po.SGD, 0.1), (po.RMSprop, 0.001), (po.Adam, 0.003)):
    model = nn.Sequential(nn.Dense(64, 64, activation="relu"), nn.Dense(64, 10), seed=0)
    trainer = po.Trainer(model, nn.CrossEntropy(), kind(model.parameters(), lr=lr), seed=0)
    trackers = [callbacks.TensorBoard(logs / kind.__name__)]  # callbacks.MLflow() for MLflow
    history = trainer.fit(
        data.x_train, data.y_train, epochs=10, callbacks=trackers, verbose=False,
        validation_split=0.2,  # of the training set: who chooses by the test set cannot test with it
    )  # fmt: skip
    accuracy[kind.__name__] = history["val_accuracy"][-1]

# %% Look at them in a browser.
print(", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()))
print(f"tensorboard --logdir {logs}")
