"""A call that succeeds of every public function, constructor and method, and the list of what is public."""

import atexit
import functools
import importlib.util
import inspect
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

import pyoptim as po
from pyoptim import averages, callbacks, nn, ops, schedules, transforms

# A file directly in the package is a public module; these folders are too.
MODULES = sorted(
    {path.stem for path in Path(po.__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    | {"datasets", "diagnostics", "nn", "ops", "recipes", "sklearn"}
)

# What only passes on arrays that were checked already, in loops where another look would cost time: methods
# that models, trainers and optimizers call on their parts. Records, whose fields the package itself fills.
UNCHECKED = {
    "Callback.on_epoch_begin", "Callback.on_epoch_end", "Callback.on_batch_begin", "Callback.on_batch_end",
    "Callback.load_state", "Layer.bind", "Layer.initialize", "Layer.takes_statistics", "Layer.output_shape",
    "Layer.forward", "Layer.backward", "Loss.check_target", "Loss.check_sample_weight", "Loss.compute",
    "Loss.divisor", "Loss.evaluate", "Loss.parameter", "optim.optimizer.Optimizer.follow",
    "surfaces.Surface", "Optimizer",
    "nn.sequential.Sequential.check_input", "nn.sequential.Sequential.give_layers",
    "optim.optimizer.Optimizer.structured", "optim.optimizer.Optimizer.rounding =",
    "optim.optimizer.Optimizer.state_dtype =", "torch.Optimizer.state =",
}  # fmt: skip
_PROTOCOLS = {"Layer": nn.Layer, "Loss": nn.Loss, "Callback": callbacks.Callback}


def public():
    """Name -> function, class or method of everything public that takes arguments."""
    found = {}
    for module in ["", *MODULES]:
        if module in ("sklearn", "torch") and importlib.util.find_spec(module) is None:
            continue
        space = importlib.import_module(f"pyoptim.{module}" if module else "pyoptim")
        for name in space.__all__:
            value = getattr(space, name)
            if inspect.isclass(value) and issubclass(value, Exception | tuple):
                continue
            if inspect.isclass(value):
                if not issubclass(value, dict):  # whose constructor is Python's
                    found[f"{module}.{name}" if module else name] = value
                found.update(_methods(value))
            elif inspect.isfunction(value):
                found[f"{module}.{name}"] = value
    return {name: value for name, value in found.items() if name not in UNCHECKED and _takes_arguments(value)}


def _methods(cls):
    """The public methods of a class of the package, by the class that defines each."""
    for name in dir(cls):
        if name.startswith("_") and name != "__call__":
            continue
        owner = next(base for base in cls.__mro__ if name in vars(base))
        value = vars(owner)[name]
        if owner.__module__.startswith("pyoptim") and _is_checked_when_set(value):
            yield f"{owner.__module__.removeprefix('pyoptim.')}.{owner.__qualname__}.{name} =", value
        value = getattr(value, "__func__", value)
        value = getattr(value, "fn", value)  # of scikit-learn's available_if
        if not inspect.isfunction(value) or not owner.__module__.startswith("pyoptim"):
            continue
        if any(
            issubclass(cls, base) and f"{label}.{name}" in UNCHECKED for label, base in _PROTOCOLS.items()
        ):
            continue
        if owner.__module__ == "pyoptim.nn.initializers":  # layers call them
            continue
        yield f"{owner.__module__.removeprefix('pyoptim.')}.{owner.__qualname__}.{name}", value


def _is_checked_when_set(value):
    return value.fset is not None if isinstance(value, property) else hasattr(type(value), "__set__")


def _takes_arguments(function):
    """Whether there is an argument beside the instance."""
    if not callable(function):  # an attribute that is set
        return True
    if inspect.isclass(function):
        return bool(parameters(function))
    return bool([name for name in parameters(function) if name != "self"])


def parameters(function):
    return dict(inspect.signature(function).parameters)


def valid(name, function):
    """A function to call and arguments for it, by name, all made anew: (function, {name: value}).

    Arguments that are not in the table have their defaults. The key of variable ones begins with a star.
    """
    if name in CALLS:
        function, arguments = CALLS[name]()
    else:
        arguments = _of_constructor(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            arguments.setdefault(parameter.name, parameter.default)
    missing = [key for key, value in arguments.items() if value is inspect.Parameter.empty]
    assert not missing, f"{name} needs an entry in CALLS that gives {', '.join(missing)}"
    return function, arguments


def invoke(function, arguments):
    """Call the function; what makes a context or a generator is entered."""
    given = dict(arguments)
    positional = [value for key in list(given) if key.startswith("*") for value in given.pop(key)]
    result = function(*positional, **given)
    if hasattr(result, "__enter__"):
        with result:
            pass
    return result


def _of_constructor(cls):
    """Arguments of a class whose entry would say nothing new."""
    if inspect.isclass(cls) and issubclass(cls, po.Optimizer):
        own = {"params": _params()}
        if "__init__" in vars(cls) and cls is not po.Optimizer:  # its signature names no hyperparameters
            own |= {**cls.defaults}
        return own
    return {}


# Parts of the calls.


def _floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _params():
    return _floats(3, 2)


def _labels():
    return np.array([0, 1, 2, 1, 0, 1])


def _model():
    return nn.Sequential(nn.Dense(4, 5, activation="relu"), nn.BatchNorm(5), nn.Dense(5, 3), seed=0)


def _trainer():
    model = _model()
    return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.01), seed=0)


def _objective():
    return po.Objective(_model(), nn.CrossEntropy(), _floats(6, 4), _labels())


def _optimizer():
    return po.Adam(_params())


def _path(name="file"):
    return os.path.join(_folder(), name)


def _folder():
    global _made
    if _made is None:
        _made = tempfile.TemporaryDirectory(prefix="calls-")
        atexit.register(_made.cleanup)
    return _made.name


_made = None


def _pairs():
    folder = _path("pairs")
    os.makedirs(folder, exist_ok=True)
    for part in ("x", "y"):
        np.save(os.path.join(folder, f"a.{part}.npy"), _floats(6, 4))
    return folder


class _Table:
    """A stand-in for a table of Arrow's, with the columns of its schema."""

    class schema:
        names = ("a", "y")

        def field(name):
            return _Table.schema

        class type:
            def to_pandas_dtype():
                return np.float32

    def to_batches(self):
        return []


def _pipeline():
    return po.distributed.Pipeline([nn.Dense(4, 3)], nn.CrossEntropy(), po.SGD, None, seed=0)


def _forwarded():
    model = _model()
    model(_floats(6, 4))
    return model


def _history():
    history = po.History()
    history["loss"] = [1.0, 0.5]
    return history


def _saved(saver):
    path = _path()
    saver.save(path)
    return path


def _norm_call(function):
    x = _floats(6, 5)
    y, saved = ops.batch_norm_forward(x, np.ones(5, np.float32), np.zeros(5, np.float32), None, None)
    return function, {"dy": y, "x": x, "gamma": np.ones(5, np.float32), "saved": saved}


def _layer_norm_call(function):
    x = _floats(6, 5)
    y, saved = ops.layer_norm_forward(x, 5)
    return function, {"dy": y, "x": x, "features": 5, "gamma": np.ones(5, np.float32), "saved": saved}


def _images():
    return {
        "x": _floats(6, 1, 4, 4),
        "y": np.eye(3, dtype=np.float32)[_labels()],
        "rng": np.random.default_rng(0),
    }


def _torch():
    import torch

    return torch


def _net():
    return list(_torch().nn.Linear(3, 2).parameters())


def _torch_optimizer():
    return po.torch.Optimizer(_net(), po.Adam, lr=1e-3)


def _estimator(kind, *, fitted=True):
    made = getattr(importlib.import_module("pyoptim.sklearn"), kind)(hidden_layer_sizes=(3,), max_iter=1)
    return _silent(made.fit)(_floats(6, 4), _labels()) and made if fitted else made


def _constructor(kind):
    """A function that makes an estimator and fits it, since it is `fit` that checks the parameters."""
    cls = getattr(importlib.import_module("pyoptim.sklearn"), kind)

    def fit(**parameters):
        return cls(**parameters).fit(_floats(24, 4), np.tile(_labels(), 4))

    fit.__signature__ = inspect.signature(cls)
    return _silent(fit), {"hidden_layer_sizes": (3,), "max_iter": 1}


def _silent(function):
    """The function without warnings, e.g. that it has not converged."""

    @functools.wraps(function)
    def call(*arguments, **named):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, **named)

    return call


def _of_rows(method):
    kind, name = method.split(".")
    return getattr(_estimator(kind), name), {"X": _floats(6, 4)}


_DATA = {"x": _floats(6, 4), "y": _labels(), "sample_weight": np.ones(6)}
_TARGETS = {"targets": _labels(), "outputs": _floats(6, 3)}
_STREAM = {"seed": 1, "step": 2}
_POINT = {"p": np.array([0.5, 0.25])}


def _data():
    return {key: value.copy() for key, value in _DATA.items()}


def _measured(name, **options):
    arguments = {"model": _model(), "loss": nn.CrossEntropy(), "x": _floats(6, 4), "y": _labels()}
    return getattr(po.diagnostics, name), {**arguments, **options}


def _trainings(name):
    def make(seed):
        model = nn.Sequential(nn.Dense(4, 3), seed=seed)
        return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))

    x, y = _floats(6, 4), _labels()
    arguments = {"make": make, "x": x, "y": y, "validation_data": (x, y), "repeats": 2}
    return getattr(po.diagnostics, name), {**arguments, "fit": {"epochs": 1}}


def _recipe(name, **options):
    arguments = {"x": _floats(6, 4), "y": _labels(), "epochs": 1, **options}
    return _quiet(getattr(po.recipes, name)), arguments


def _quiet(function):
    """The function without a progress bar, which is one of the arguments that it passes on."""
    quiet = functools.partial(function, verbose=False)
    quiet.__signature__ = inspect.signature(function)
    return quiet


def _cascade():
    return po.recipes.Cascade([_model(), _model()], thresholds=[0.5])


def _mixture():
    return po.recipes.MixtureOfExperts([_model(), _model()], nn.Sequential(nn.Dense(4, 2), seed=0))


def _quantized():
    return po.recipes.quantize(_model(), _floats(6, 4))


# What is not in the table is called with its defaults.
CALLS = {
    "train.history.History.plot": lambda: (
        _history().plot,
        {"path": _path("plot.png"), "axes": None, "title": "", "validation": "test"},
    ),
    "optim.optimizer.Optimizer.ascended": lambda: (_optimizer().ascended, {"grads": _floats(3, 2, seed=1)}),
    "optim.optimizer.Optimizer.load": lambda: (o := _optimizer(), (o.load, {"path": _saved(o)}))[1],
    "optim.optimizer.Optimizer.load_state_dict": lambda: (
        o := _optimizer(),
        (o.load_state_dict, {"state_dict": o.state_dict()}),
    )[1],
    "optim.optimizer.Optimizer.save": lambda: (_optimizer().save, {"path": _path()}),
    "optim.optimizer.Optimizer.step": lambda: (_optimizer().step, {"grads": _floats(3, 2, seed=1)}),
    ".compare": lambda: (
        po.compare,
        {"runs": {"a": _history()}, "path": _path("plot.png"), "title": "", "validation": "test"},
    ),
    "Muon": lambda: (po.Muon, {"params": _params(), **po.Muon.defaults}),
    "Trainer": lambda: (
        m := _model(),
        (po.Trainer, {"model": m, "loss": nn.CrossEntropy(), "optimizer": po.SGD(m.parameters())}),
    )[1],
    ".minimize": lambda: (
        po.minimize,
        {
            "model": _model(),
            "loss": nn.CrossEntropy(),
            "X": _floats(6, 4),
            "y": _labels(),
            "max_iter": 2,
            "verbose": False,
        },
    ),
    "Objective": lambda: (
        po.Objective,
        {"model": _model(), "loss": nn.CrossEntropy(), "X": _floats(6, 4), "y": _labels()},
    ),
    **{
        f"train.objective.Objective.{name}": lambda name=name: (
            o := _objective(),
            (getattr(o, name), {"w": o.parameters}),
        )[1]
        for name in ("gradient", "hessian", "set_parameters", "value", "value_and_gradient")
    },
    "train.objective.Objective.hessian_vector": lambda: (
        o := _objective(),
        (o.hessian_vector, {"w": o.parameters, "v": o.parameters}),
    )[1],
    "distributed.ElasticAveraging": lambda: (po.distributed.ElasticAveraging, {"comm": None}),
    "distributed.ParameterServer": lambda: (po.distributed.ParameterServer, {"comm": None}),
    "distributed.Pipeline": lambda: (
        po.distributed.Pipeline,
        {"layers": [nn.Dense(4, 3)], "loss": nn.CrossEntropy(), "optimizer": po.SGD, "comm": None},
    ),
    "train.pipeline.Pipeline.evaluate": lambda: (_pipeline().evaluate, _data()),
    "train.pipeline.Pipeline.fit": lambda: (_pipeline().fit, {**_data(), "verbose": False}),
    "train.pipeline.Pipeline.load": lambda: (
        p := _pipeline(),
        (p.load, {"path": _saved(p)}),
    )[1],
    "train.pipeline.Pipeline.predict": lambda: (_pipeline().predict, {"x": _floats(6, 4)}),
    "train.pipeline.Pipeline.save": lambda: (_pipeline().save, {"path": _path()}),
    "train.trainer.Trainer.evaluate": lambda: (_trainer().evaluate, _data()),
    "train.trainer.Trainer.fit": lambda: (_trainer().fit, {**_data(), "verbose": False}),
    "train.trainer.Trainer.partial_fit": lambda: (_trainer().partial_fit, _data()),
    "train.trainer.Trainer.predict": lambda: (_trainer().predict, {"x": _floats(6, 4)}),
    ".num_threads": lambda: (po.num_threads, {"n": 1}),
    ".set_num_threads": lambda: (po.set_num_threads, {"n": 1}),
    ".use_backend": lambda: (po.use_backend, {"name": "numpy"}),
    "averages.EMA": lambda: (averages.EMA, {"params": _params()}),
    "averages.SWA": lambda: (averages.SWA, {"params": _params()}),
    "averages.WeightAverage": lambda: (averages.WeightAverage, {"params": _params()}),
    "averages.WeightAverage.load_state_dict": lambda: (
        a := averages.SWA(_params()),
        (a.load_state_dict, {"state_dict": a.state_dict()}),
    )[1],
    "callbacks.ActivationStatistics": lambda: (
        callbacks.ActivationStatistics,
        {"x": _floats(6, 4), "layer": 1},
    ),
    "callbacks.CSVLogger": lambda: (callbacks.CSVLogger, {"path": _path("log.csv")}),
    "callbacks.LearningRateScheduler": lambda: (
        callbacks.LearningRateScheduler,
        {"schedule": lambda epoch: 0.1},
    ),
    "blocks.arrow": lambda: (po.blocks.arrow, {"source": _Table(), "target": "y"}),
    "blocks.npy": lambda: (po.blocks.npy, {"folder": _pairs()}),
    "callbacks.ModelCheckpoint": lambda: (callbacks.ModelCheckpoint, {"path": _path()}),
    "callbacks.TensorBoard": lambda: (callbacks.TensorBoard, {"path": _path("logs")}),
    "cli.main": lambda: (_main, {"argv": ["info"]}),
    "datasets.load": lambda: (po.datasets.load, {"name": "digits"}),
    "diagnostics.curvature": lambda: _measured("curvature", points=2),
    "diagnostics.hessian_spectrum": lambda: _measured("hessian_spectrum", count=1),
    "diagnostics.loss_slice": lambda: _measured("loss_slice", other=_model(), points=2),
    "diagnostics.sharpness": lambda: _measured("sharpness", iterations=1),
    "diagnostics.fit_tiny": lambda: _measured("fit_tiny", steps=1),
    "diagnostics.layer_statistics": lambda: _measured("layer_statistics"),
    "diagnostics.bias_variance": lambda: _trainings("bias_variance"),
    "diagnostics.learning_curve": lambda: _trainings("learning_curve"),
    "diagnostics.gradient_check": lambda: _measured("gradient_check", entries=1),
    "diagnostics.gradient_noise": lambda: _measured("gradient_noise"),
    "gradients.clip_grad_norm_": lambda: (
        po.gradients.clip_grad_norm_,
        {"grads": _params(), "max_norm": 1.0},
    ),
    "gradients.clip_grad_value_": lambda: (
        po.gradients.clip_grad_value_,
        {"grads": _params(), "clip_value": 1.0},
    ),
    "gradients.global_norm": lambda: (po.gradients.global_norm, {"grads": [_params(), _params()]}),
    "metrics.TopK": lambda: (po.metrics.TopK, {"k": 2}),
    "metrics.TopK.__call__": lambda: (po.metrics.TopK(2), dict(_TARGETS)),
    **{
        f"metrics.{name}": lambda name=name: (getattr(po.metrics, name), dict(_TARGETS))
        for name in (
            "accuracy",
            "average_precision",
            "confusion_matrix",
            "coverage_curve",
            "f_score",
            "plot_confusion_matrix",
            "precision",
            "recall",
            "roc_auc",
            "selective_accuracy",
        )
    },
    "metrics.coverage": lambda: (po.metrics.coverage, {**_TARGETS, "threshold": 0.5}),
    "metrics.r2": lambda: (po.metrics.r2, {"targets": _floats(6, 3, seed=1), "outputs": _floats(6, 3)}),
    "metrics.named": lambda: (po.metrics.named, {"name": "f1"}),
    "metrics.roc_curve": lambda: (
        po.metrics.roc_curve,
        {"targets": np.array([0, 1, 1, 0]), "scores": _floats(4)},
    ),
    "metrics.precision_recall_curve": lambda: (
        po.metrics.precision_recall_curve,
        {"targets": np.array([0, 1, 1, 0]), "scores": _floats(4)},
    ),
    "nn.penalties.Penalty.add": lambda: (nn.Penalty(l2=0.1).add, {"model": _model()}),
    "nn.Residual": lambda: (nn.Residual, {"block": [nn.Dense(4, 4)]}),
    "nn.Sequential": lambda: (nn.Sequential, {"*layers": (nn.Dense(4, 4),)}),
    "nn.sequential.Sequential.__call__": lambda: (_model(), {"x": _floats(6, 4)}),
    "nn.sequential.Sequential.backward": lambda: (_forwarded().backward, {"dy": _floats(6, 3)}),
    "nn.sequential.Sequential.forward": lambda: (_model().forward, {"x": _floats(6, 4)}),
    "nn.sequential.Sequential.load": lambda: (nn.Sequential.load, {"path": _saved(_model())}),
    "nn.sequential.Sequential.load_state_dict": lambda: (
        m := _model(),
        (m.load_state_dict, {"state": m.state_dict()}),
    )[1],
    "nn.sequential.Sequential.output_shape": lambda: (_model().output_shape, {"shape": (4,)}),
    "nn.sequential.Sequential.save": lambda: (_model().save, {"path": _path()}),
    "nn.sequential.Sequential.summary": lambda: (_model().summary, {"input_shape": (4,)}),
    "nn.sequential.Sequential.to": lambda: (_model().to, {"device": "cpu"}),
    "nn.Constant": lambda: (nn.Constant, {"value": 0.5}),
    "nn.BatchNorm": lambda: (nn.BatchNorm, {"features": 4}),
    "nn.LayerNorm": lambda: (nn.LayerNorm, {"features": 4}),
    "nn.Dense": lambda: (nn.Dense, {"in_features": 4, "out_features": 3}),
    "nn.losses.Loss.__call__": lambda: (
        nn.CrossEntropy(),
        {"output": _floats(6, 3), "target": _labels(), "sample_weight": np.ones(6)},
    ),
    "ops.activation_forward": lambda: (
        ops.activation_forward,
        {"x": _floats(6, 3), "activation": "leaky_relu", "slope": 0.1},
    ),
    "ops.activation_backward": lambda: (
        ops.activation_backward,
        {"dy": _floats(6, 3), "kept": _floats(6, 3), "activation": "relu"},
    ),
    "ops.batch_norm_forward": lambda: (
        ops.batch_norm_forward,
        {
            "x": _floats(6, 5),
            "gamma": np.ones(5, np.float32),
            "beta": np.zeros(5, np.float32),
            "running_mean": np.zeros(5, np.float32),
            "running_var": np.ones(5, np.float32),
        },
    ),
    "ops.batch_norm_backward": lambda: _norm_call(ops.batch_norm_backward),
    "ops.dense_forward": lambda: (
        ops.dense_forward,
        {"x": _floats(6, 4), "weight": _floats(3, 4), "bias": _floats(3)},
    ),
    "ops.dense_backward": lambda: (
        ops.dense_backward,
        {
            "dy": _floats(6, 3),
            "x": _floats(6, 4),
            "weight": _floats(3, 4),
            "y": _floats(6, 3),
            "activation": "relu",
        },
    ),
    "ops.dropout_forward": lambda: (ops.dropout_forward, {"x": _floats(6, 4), "p": 0.5, **_STREAM}),
    "ops.dropout_backward": lambda: (ops.dropout_backward, {"dy": _floats(6, 4), "p": 0.5, **_STREAM}),
    "ops.gaussian_noise": lambda: (ops.gaussian_noise, {"x": _floats(6, 4), "std": 0.5, **_STREAM}),
    "ops.kl_divergence": lambda: (
        ops.kl_divergence,
        {"logits": _floats(6, 3), "target": np.full((6, 3), 1 / 3, np.float32), "sample_weight": np.ones(6)},
    ),
    "ops.layer_norm_forward": lambda: (
        ops.layer_norm_forward,
        {"x": _floats(6, 5), "features": 5, "gamma": _floats(5), "beta": _floats(5)},
    ),
    "ops.layer_norm_backward": lambda: _layer_norm_call(ops.layer_norm_backward),
    "ops.pointwise_loss": lambda: (
        ops.pointwise_loss,
        {
            "prediction": _floats(6, 3),
            "target": np.ones((6, 3), np.float32),
            "kind": "binary",
            "pos_weight": np.ones(3),
            "sample_weight": np.ones(6),
        },
    ),
    "ops.softmax_cross_entropy": lambda: (
        ops.softmax_cross_entropy,
        {
            "logits": _floats(6, 3),
            "labels": _labels(),
            "class_weight": np.ones(3),
            "sample_weight": np.ones(6),
        },
    ),
    "ops.softmax_forward": lambda: (ops.softmax_forward, {"x": _floats(6, 3)}),
    "ops.softmax_backward": lambda: (ops.softmax_backward, {"dy": _floats(6, 3), "y": _floats(6, 3)}),
    **{
        f"surfaces.{name}": lambda name=name: (getattr(po.surfaces, name), dict(_POINT))
        for name in po.surfaces.__all__
        if name.islower()
    },
    "recipes.continuation": lambda: _recipe("continuation", trainer=_trainer()),
    "recipes.curriculum": lambda: _recipe(
        "curriculum", trainer=_trainer(), hardness=np.arange(6.0), shares=(0.5, 1)
    ),
    "recipes.distill": lambda: _recipe(
        "distill", teacher=_model(), student=_model(), hints={0: 1}, alpha=0.5, hint_epochs=1
    ),
    "recipes.greedy_pretrain": lambda: _recipe("greedy_pretrain", model=_model(), loss=nn.CrossEntropy()),
    "recipes.Cascade": lambda: (po.recipes.Cascade, {"models": [_model(), _model()]}),
    "recipes._cascade.Cascade.fit": lambda: (
        po.recipes.Cascade([_model(), _model()]).fit,
        {"x": _floats(6, 4), "y": _labels()},
    ),
    "recipes._cascade.Cascade.predict": lambda: (_cascade().predict, {"x": _floats(6, 4)}),
    "recipes._cascade.Cascade.evaluate": lambda: (
        _cascade().evaluate,
        {"x": _floats(6, 4), "y": _labels(), "repeats": 1},
    ),
    "recipes.MixtureOfExperts": lambda: (
        po.recipes.MixtureOfExperts,
        {"experts": [_model(), _model()], "gater": nn.Sequential(nn.Dense(4, 2))},
    ),
    "recipes._experts.MixtureOfExperts.gates": lambda: (_mixture().gates, {"x": _floats(6, 4)}),
    "recipes._experts.MixtureOfExperts.predict": lambda: (_mixture().predict, {"x": _floats(6, 4)}),
    "recipes._quantize.QuantizedModel.__call__": lambda: (_quantized(), {"x": _floats(6, 4)}),
    "recipes._quantize.QuantizedModel.predict": lambda: (_quantized().predict, {"x": _floats(6, 4)}),
    "recipes._quantize.QuantizedModel.predict_proba": lambda: (
        _quantized().predict_proba,
        {"x": _floats(6, 4)},
    ),
    "recipes._quantize.QuantizedModel.save": lambda: (_quantized().save, {"path": _path()}),
    "recipes._quantize.QuantizedModel.load": lambda: (
        po.recipes.QuantizedModel.load,
        {"path": _saved(_quantized())},
    ),
    "recipes.compress": lambda: (
        po.recipes.compress,
        {"model": _model(), "x": _floats(6, 4), "student": _model(), "fit": {"epochs": 1}},
    ),
    "recipes.prune": lambda: (po.recipes.prune, {"model": _model(), "share": 0.5}),
    "recipes.quantize": lambda: (po.recipes.quantize, {"model": _model(), "calibration": _floats(6, 4)}),
    "recipes.shrink": lambda: (po.recipes.shrink, {"model": _model()}),
    "recipes.transfer": lambda: (po.recipes.transfer, {"source": _model(), "target": _model(), "layers": 2}),
    "sklearn.MLPClassifier": lambda: _constructor("MLPClassifier"),
    "sklearn.MLPRegressor": lambda: _constructor("MLPRegressor"),
    "sklearn._base.BasePerceptron.fit": lambda: (
        _silent(_estimator("MLPClassifier", fitted=False).fit),
        {
            "X": _floats(6, 4),
            "y": _labels(),
            "sample_weight": np.ones(6),
            "eval_set": (_floats(6, 4), _labels()),
        },
    ),
    "sklearn._classifier.MLPClassifier.partial_fit": lambda: (
        _estimator("MLPClassifier", fitted=False).partial_fit,
        {"X": _floats(6, 4), "y": _labels(), "sample_weight": np.ones(6), "classes": np.arange(3)},
    ),
    "sklearn._regressor.MLPRegressor.partial_fit": lambda: (
        _estimator("MLPRegressor", fitted=False).partial_fit,
        {"X": _floats(6, 4), "y": _labels(), "sample_weight": np.ones(6)},
    ),
    **{
        f"sklearn._{part}.{method}": lambda method=method: _of_rows(method)
        for part, method in (
            ("classifier", "MLPClassifier.predict"),
            ("classifier", "MLPClassifier.predict_proba"),
            ("classifier", "MLPClassifier.predict_log_proba"),
            ("regressor", "MLPRegressor.predict"),
        )
    },
    "sklearn.from_estimator": lambda: (
        importlib.import_module("pyoptim.sklearn").from_estimator,
        {"estimator": importlib.import_module("sklearn.neural_network").MLPClassifier()},
    ),
    "averages.update_bn": lambda: (averages.update_bn, {"model": _model(), "x": _floats(6, 4)}),
    "transforms.Compose": lambda: (transforms.Compose, {"*transforms": (transforms.Noise(0.1),)}),
    "transforms.Compose.__call__": lambda: (transforms.Compose(transforms.Noise(0.1)), _images()),
    "transforms.Noise": lambda: (transforms.Noise, {"std": 0.1}),
    "transforms.Noise.__call__": lambda: (transforms.Noise(0.1), _images()),
    "transforms.Mixup.__call__": lambda: (transforms.Mixup(), _images()),
    "transforms._OfImages.__call__": lambda: (transforms.CutMix(), _images()),
    "transforms.Crop": lambda: (transforms.Crop, {"share": 0.5}),
    "transforms.Rotate": lambda: (transforms.Rotate, {"degrees": 5.0}),
    "transforms.Shift": lambda: (transforms.Shift, {"pixels": 1}),
    "torch.Optimizer": lambda: (po.torch.Optimizer, {"params": _net(), "optimizer": po.Adam, "lr": 0.01}),
    "torch.Optimizer.add_param_group": lambda: (
        _torch_optimizer().add_param_group,
        {"param_group": {"params": _net()}},
    ),
    "torch.Optimizer.load_state_dict": lambda: (
        o := _torch_optimizer(),
        (o.load_state_dict, {"state_dict": o.state_dict()}),
    )[1],
    "torch.Optimizer.step": lambda: (_torch_optimizer().step, {"closure": lambda: 0.5}),
    "torch.load_state_dict": lambda: (
        po.torch.load_state_dict,
        {"ours": po.Adam(_net()), "state_dict": _torch().optim.Adam(_net()).state_dict()},
    ),
    "torch.state_dict": lambda: (po.torch.state_dict, {"ours": _optimizer()}),
}


def _setting(instance, name):
    """A function that sets an attribute, and its argument."""
    return lambda **value: setattr(instance, name, value[name]), {name: getattr(instance, name)}


for _name in ("max_grad_norm", "nonfinite", "accumulate", "seed"):
    CALLS[f"optim.optimizer.Optimizer.{_name} ="] = lambda name=_name: _setting(_optimizer(), name)
CALLS["nn.layers.Layer.trainable ="] = lambda: _setting(nn.Dense(2, 2), "trainable")
CALLS["nn.residual.Residual.trainable ="] = lambda: _setting(nn.Residual(nn.Dense(2, 2)), "trainable")
CALLS["train.trainer.Trainer.sharpness_aware ="] = lambda: _setting(_trainer(), "sharpness_aware")

CALLS["schedules.Schedule.__call__"] = lambda: (schedules.Constant(0.1), {"k": 2})
_SCHEDULES = {
    "Chained": {"parts": (schedules.Constant(0.1), schedules.Exponential(1.0, 0.9))},
    "Constant": {"lr": 0.1},
    "Cosine": {"lr": 0.1, "steps": 10},
    "Cyclic": {"lowest": 0.1, "highest": 0.2, "half_cycle": 5},
    "Exponential": {"lr": 0.1, "rate": 0.9},
    "InverseSqrt": {"lr": 0.1},
    "InverseTime": {"lr": 0.1, "decay": 0.1},
    "Joined": {"parts": (schedules.Constant(0.1), schedules.Constant(0.2)), "boundaries": (3,)},
    "Linear": {"lr": 0.1, "final": 0.01, "steps": 10},
    "OneCycle": {"peak": 0.1, "steps": 10},
    "Piecewise": {"boundaries": (3,), "rates": (0.1, 0.2)},
    "Polynomial": {"lr": 0.1, "steps": 10},
    "RangeTest": {"lowest": 0.1, "highest": 0.2, "steps": 10},
    "Step": {"lr": 0.1, "every": 3},
    "WarmUp": {"then": schedules.Constant(0.1), "steps": 3},
}
for _name, _arguments in _SCHEDULES.items():
    _cls = getattr(schedules, _name)
    CALLS[f"schedules.{_name}"] = lambda cls=_cls, given=_arguments: (cls, dict(given))


def _main(argv):
    """The command line, of which `info` prints a table."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return po.cli.main(argv)
        except SystemExit as status:  # as of every command line that makes no sense
            return status.code
