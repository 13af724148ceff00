"""Writers of files that are killed at random moments: ``python tests/support/kills.py --rounds 300``.

Several writers save to one path, and each round kills one of them and starts another. A reader must find a
whole file every time, the other writers must not be disturbed, and after one more save nothing temporary may
be left. ``--program`` names the program tests/cpp/programs/files.cpp, which then is what writes.
"""

import argparse
import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

import pyoptim as po
from pyoptim import nn

WRITERS = 3


def a_model(seed=0):
    return nn.Sequential(nn.Dense(64, 300), nn.BatchNorm(300), nn.Dense(300, 10), seed=seed)


def train_for_ever(path):
    """Save the training after every step; a writer that begins later goes on from what another one saved."""
    model = a_model()
    x, y = np.zeros((64, 64), np.float32), np.arange(64) % 10
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=0)
    trainer.fit(x, y, epochs=10**9, checkpoint=path, checkpoint_every=0, verbose=False)


def write_for_ever(kind, path):
    """What a writer does until it is killed."""
    model = a_model(os.getpid())
    while True:
        if kind == "model":
            model.save(path)
        elif kind == "optimizer":
            po.Adam(model.parameters()).save(path)
        else:
            train_for_ever(path)


def read(kind, path):
    """Read the file as its users do; an error if it is damaged."""
    if kind == "model":
        nn.Sequential.load(path)
    elif kind == "optimizer":
        po.Adam(a_model().parameters()).load(path)
    else:
        from pyoptim.runtime import files

        files.read(path, "pyoptim-training-1")


class Forked:
    """A writer in a child of this process."""

    def __init__(self, kind, path):
        self.pid = os.fork()
        if self.pid == 0:
            try:
                write_for_ever(kind, path)
            except BaseException:
                traceback.print_exc()  # `os._exit` shows none
            finally:
                os._exit(1)

    def kill(self):
        """End the writer; returns whether it was still at work."""
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL


class Program:
    """A writer in C++."""

    def __init__(self, program, model, path):
        self._process = subprocess.Popen([program, "save", model, path])

    def kill(self):
        self._process.kill()
        return self._process.wait() == -signal.SIGKILL


def run(rounds, kind, folder, start, seed=0):
    """Kill so many writers.

    Returns how many files were damaged, how many writers failed, and how many temporary files are left; and
    how many there were at a time.
    """
    rng, path = random.Random(seed), folder / "target.safetensors"
    damaged = failed = 0
    writers = [start(path) for _ in range(WRITERS)]
    most = 0
    for _ in range(rounds):
        time.sleep(rng.uniform(0, 0.05))
        victim = rng.randrange(WRITERS)
        failed += not writers[victim].kill()
        most = max(most, len(list(folder.glob(".pyoptim-*"))))
        writers[victim] = start(path)
        try:
            if path.exists():
                read(kind, path)
        except ValueError as error:
            damaged += 1
            print(error, file=sys.stderr)
    failed += sum(not writer.kill() for writer in writers)
    a_model().save(folder / "another.safetensors")
    left = len(list(folder.glob(".*")))
    return {"damaged": damaged, "failed": failed, "left": left}, most


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--kind", choices=("model", "optimizer", "training"), default="model")
    parser.add_argument("--program")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    if options.program:
        model = Path(tempfile.mkdtemp()) / "model"
        a_model().save(model)
        start = functools.partial(Program, options.program, model)
    else:
        start = functools.partial(Forked, options.kind)
    found, most = run(options.rounds, options.kind, folder, start)
    print(f"{options.rounds} kills: {found}; at most {most} temporary files at a time")
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()
