"""``pyoptim bench predict``: outputs of trained networks for some rows, and for very many.

The competitors are PyTorch in inference mode and ONNX Runtime, each with its own way of using the threads.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from .. import nn
from ..optim.elementwise import SGD
from ..runtime import threads
from ..runtime.dtypes import Array
from ..train.trainer import Trainer
from .case import Case, Family, Mismatch, Options, Row, Target
from .timing import FULL, Run
from .training import _EPS, _model, _Work

_NETS = ((784, 256, 128, 10), (64, 100, 10), (256, 1024, 1024, 16))
_ROWS = (1, 32, 1_024, 60_000)
_QUICK_ROWS = (1, 32)

_Predict = Callable[[Array], Array]


def _cases(options: Options) -> Generator[Case]:
    for widths, norm in itertools.product(_NETS[1:2] if options.quick else _NETS, (False, True)):
        for rows in _QUICK_ROWS if options.quick else _ROWS:
            yield prediction(widths, norm, rows, options.peers)


def prediction(widths: tuple[int, ...], norm: bool, rows: int, peers: tuple[str, ...]) -> Case:
    """The outputs of a network for this many rows, in float32."""
    sizes = [m * n for m, n in itertools.pairwise(widths)]
    name = f"predict {'-'.join(map(str, widths))}{' BatchNorm' if norm else ''}"
    prepare = functools.partial(_prepare, widths, norm, rows, peers)
    return Case(
        name, rows, 4 * (sum(sizes) + rows * widths[0]), prepare, 2 * rows * sum(sizes), dtype="float32"
    )


def _prepare(widths: tuple[int, ...], norm: bool, rows: int, peers: tuple[str, ...]) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, widths[0]), np.float32)
    model = _model(_Work("SGD", 1, norm, x, x, "cpu", widths))
    for layer in model.layers:
        for name in ("running_mean", "running_var"):  # as after a training
            if name in layer.buffers:
                layer.buffers[name][...] = rng.uniform(0.5, 1.5, layer.buffers[name].shape)
    makers: dict[str, Callable[[nn.Sequential], _Predict]] = {"pyoptim": _pyoptim}
    makers |= {peer: make for peer, make in _PEERS.items() if peer in peers}
    made = {who: make(model) for who, make in makers.items()}
    some = np.unique(np.linspace(0, rows - 1, 64).astype(int))
    expected = _expected(model, x[some])
    # Each sum of k terms is off by at most k eps times their size, of order 1, and layers add up.
    off = 4 * max(widths) * float(np.finfo(np.float32).eps) * np.abs(expected).max()
    for who, predict in made.items():
        found = predict(x)[some]
        if not np.abs(found - expected).max() <= off:
            raise Mismatch(
                f"{'-'.join(map(str, widths))}, {rows} rows: outputs of {who} are off by up to "
                f"{np.abs(found - expected).max()}, expected at most {off:.1e}"
            )
    return {who: functools.partial(predict, x) for who, predict in made.items()}


def _expected(model: nn.Sequential, x: Array) -> Array:
    y = x.astype(np.float64)
    for layer in model.layers:
        values = [p.astype(np.float64) for p in layer.parameters.values()]
        if isinstance(layer, nn.Dense):
            y = y @ values[0].T + values[1]
        else:
            mean, var = (layer.buffers[name].astype(float) for name in ("running_mean", "running_var"))
            y = (y - mean) / np.sqrt(var + _EPS) * values[0] + values[1]
        if layer.activation:  # type: ignore[attr-defined]
            y = np.maximum(y, 0)
    return y


def _pyoptim(model: nn.Sequential) -> _Predict:
    trainer = Trainer(model, nn.CrossEntropy(), SGD(model.parameters()))

    def predict(x: Array) -> Array:
        return trainer.predict(x)

    return predict


def _torch(model: nn.Sequential) -> _Predict:
    import torch

    layers: list[Any] = []
    for layer in model.layers:
        values = [torch.from_numpy(p.copy()) for p in layer.parameters.values()]
        if isinstance(layer, nn.Dense):
            made: Any = torch.nn.Linear(*reversed(values[0].shape))
        else:
            made = torch.nn.BatchNorm1d(len(values[0]), eps=_EPS)
            made.running_mean.copy_(torch.from_numpy(layer.buffers["running_mean"]))
            made.running_var.copy_(torch.from_numpy(layer.buffers["running_var"]))
        with torch.no_grad():
            made.weight.copy_(values[0])
            made.bias.copy_(values[1])
        layers += [made, torch.nn.ReLU()] if layer.activation else [made]  # type: ignore[attr-defined]
    network = torch.nn.Sequential(*layers).eval()

    def predict(x: Array) -> Array:
        with torch.inference_mode():
            found: Array = network(torch.from_numpy(x)).numpy()
        return found

    return predict


def _onnx(model: nn.Sequential) -> _Predict:
    onnx = importlib.import_module("onnx")
    runtime = importlib.import_module("onnxruntime")
    make, name = onnx.helper, "x"
    nodes, constants = list[Any](), list[Any]()

    def constant(values: Array) -> str:
        constants.append(onnx.numpy_helper.from_array(values.astype(np.float32), f"c{len(constants)}"))
        return f"c{len(constants) - 1}"

    def add(operation: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(make.make_node(operation, inputs, [f"n{len(nodes)}"], **attributes))
        return f"n{len(nodes) - 1}"

    for layer in model.layers:
        values = [constant(p) for p in layer.parameters.values()]
        if isinstance(layer, nn.Dense):
            name = add("Gemm", [name, *values], transB=1)
        else:
            running = [constant(layer.buffers[of]) for of in ("running_mean", "running_var")]
            name = add("BatchNormalization", [name, *values, *running], epsilon=_EPS)
        if layer.activation:  # type: ignore[attr-defined]
            name = add("Relu", [name])
    ends = [make.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None) for end in ("x", name)]
    graph = make.make_graph(nodes, "network", ends[:1], ends[1:], constants)
    imports = [make.make_opsetid("", 17)]
    bytes_ = make.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads.get_num_threads()
    # Its threads sleep after a run, not in the middle of the next competitor's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(bytes_, options, providers=["CPUExecutionProvider"])

    def predict(x: Array) -> Array:
        found: Array = session.run(None, {"x": x})[0]
        return found

    return predict


_PEERS: dict[str, Callable[[nn.Sequential], _Predict]] = {"torch": _torch, "onnxruntime": _onnx}


def _of_the_others(row: Row) -> float | None:
    others = [ratio for peer in _PEERS if (ratio := row.faster_than(peer))]
    return min(others, default=None)


FAMILY = Family(
    _cases,
    [Target("predict: times the faster of torch and onnxruntime", 1.1, _of_the_others)],
    FULL,
    "outputs of three networks for 1 to 60,000 rows",
)
