"""Handwritten digits, from images to a saved model: the usual way to train with pyoptim.

MNIST is read from the folder in PYOPTIM_DATA. Without that variable it is the smaller images that ship.
"""

# %% The images, as rows of numbers from 0 to 1.
import os
import tempfile

import pyoptim as po
from pyoptim import nn

name = "mnist" if "PYOPTIM_DATA" in os.environ else "digits"
data = po.datasets.load(name, flatten=True, normalize=True)
epochs = 3 if name == "mnist" else 30

# %% A network of two hidden layers, and Adam with a learning rate that falls to 0.
inputs = data.x_train.shape[1]
layers = nn.Dense(inputs, 128, activation="relu"), nn.Dense(128, 64, activation="relu"), nn.Dense(64, 10)
model = nn.Sequential(*layers, seed=0)
print(model.summary())
steps = epochs * -(-len(data.x_train) // 64)
optimizer = po.Adam(model.parameters(), lr=po.schedules.Cosine(0.003, steps=steps))

# %% Train, with the last tenth held back to see how it goes.
trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
history = trainer.fit(data.x_train, data.y_train, epochs=epochs, batch_size=64, validation_split=0.1)
print(f"trained by the {history.path} engine in {sum(history['seconds']):.1f} s")

# %% What is saved can be loaded, and says the same of images that it has never seen.
with tempfile.TemporaryDirectory() as folder:
    model.save(f"{folder}/{name}.safetensors")
    loaded = nn.Sequential.load(f"{folder}/{name}.safetensors").eval()
accuracy = float((loaded(data.x_test).argmax(axis=1) == data.y_test).mean())
print(f"{name}: {accuracy:.1%} of {len(data.y_test):,} test images are read right")
