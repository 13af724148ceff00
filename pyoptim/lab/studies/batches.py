"""The study of batch sizes."""

from __future__ import annotations

from ...optim.elementwise import Adam
from ._common import Options, Result, Study, curves_table, draw_curves, load, network, train, trainer


def _batch_size(options: Options) -> Result:
    data = load(options)
    curves = [
        train(
            f"batch size {size or 'full'}",
            options,
            data,
            lambda seed: trainer(network(data, 256, 128), Adam, seed),
            batch_size=size,
        )
        for size in (1, 10, 32, 128, 1024, None)
    ]
    return Result(f"{options.dataset}, ReLU network (256, 128), Adam", curves_table(curves), curves)


BATCH_SIZE = Study(
    "batch size against time and accuracy",
    _batch_size,
    lambda result, axes: draw_curves(result, axes, over_time=True),
    seeds=1,
)
