"""Trainings by several processes, on one machine or many: ``mpiexec -n 4 python program.py``.

Needs `mpi4py` (``pip install 'pyoptim[mpi]'``) and an MPI, the system's or PyPI's ``mpich``.
"""

from __future__ import annotations

import os
from typing import Any

from .runtime.extras import needed
from .train.asynchronous import ElasticAveraging, ParameterServer
from .train.pipeline import Pipeline

__all__ = ["ElasticAveraging", "ParameterServer", "Pipeline", "world"]


def __dir__() -> list[str]:
    return __all__


# What the starters of MPICH and Intel MPI, Open MPI, MVAPICH and Slurm say of the number of processes.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")


def world() -> Any:
    """Return the communicator of all processes that ``mpiexec`` has started, for ``Trainer(comm=...)``.

    Returns
    -------
    mpi4py.MPI.Comm or None
        None where this process was started alone; mpi4py is not imported then.

    Raises
    ------
    ImportError
        ``mpiexec`` has started several processes, and mpi4py or an MPI is missing.

    Notes
    -----
    Processes on one machine share its processors: give each its threads, with `set_num_threads`.

    Examples
    --------
    >>> trainer = Trainer(model, nn.CrossEntropy(), Adam(model.parameters()), comm=distributed.world())
    >>> trainer.fit(x, y, batch_size=256, shard=True)
    """
    if not any(os.environ.get(name, "1") != "1" for name in _SIZES):
        return None
    mpi = needed("mpi4py.MPI", "a training by several processes needs mpi4py and an MPI", "pyoptim[mpi]")
    return mpi.COMM_WORLD
