"""What each process of the study of asynchronous training does, started by mpiexec: see `apart`.

``python -m pyoptim.lab.studies._processes FILE OPTIONS``: FILE receives what was measured, OPTIONS is JSON of
the study's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...distributed import ElasticAveraging, ParameterServer, world
from ...optim.elementwise import SGD
from ...runtime.threads import set_num_threads
from ...train.trainer import Trainer
from ._common import Options, load, network, trainer

BATCH = 32  # of each process


def plain(parameters: Any) -> SGD:
    """The optimizer of all ways but one."""
    return SGD(parameters, lr=0.1)


def with_momentum(parameters: Any) -> SGD:
    """Nesterov's momentum, whose steps add up to five times as much, which is quick, and still stable."""
    return SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


# Each way to train by several processes: what it takes as ``comm``, and its optimizer.
WAYS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], SGD]]] = {
    "synchronous": (lambda comm: comm, plain),
    "elastic averaging": (lambda comm: ElasticAveraging(comm, period=10), plain),
    "elastic, momentum": (lambda comm: ElasticAveraging(comm, period=10), with_momentum),
    "parameter server": (lambda comm: ParameterServer(comm, n_push=1, n_fetch=1), plain),
    "server, every 10": (lambda comm: ParameterServer(comm, n_push=10, n_fetch=10), plain),
}


def main(path: str, given: str) -> None:
    options = Options(**json.loads(given))
    comm, data, found = world(), load(options), []
    set_num_threads(1)
    for name, (way, optimizer) in WAYS.items():
        for seed in options.seeds:
            way_of_all = way(comm)
            made: Trainer = trainer(network(data, 128), optimizer, seed, comm=way_of_all)
            history = made.fit(
                data.x_train, data.y_train, epochs=options.epochs, shard=True, verbose=False,
                validation_data=(data.x_test, data.y_test),
                batch_size=BATCH * (comm.Get_size() if way_of_all is comm else 1),
            )  # fmt: skip
            of_ranks = comm.gather(getattr(way_of_all, "staleness", Counter()))
            if of_ranks is not None:  # this is the first rank
                found.append((name, dict(history), list(sum(of_ranks, Counter()).items())))
    if comm.Get_rank() == 0:
        Path(path).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
