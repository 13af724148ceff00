"""Models and training on a GPU: what needs none, with emulated kernels, and what does.

Kernels, layers and optimizers are tested by themselves (test_cuda_*.py, test_device_layers.py,
test_device_steps.py). Here training is compared with the processor's, and launches of graphs with the generic
loop, whose bits they have.
"""

import contextlib
import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from support import kinds
from support.device import use_cuda, use_cupy
from support.doubles import OnDevice
from support.gpu_training import (
    assert_close,
    assert_same,
    every_layer,
    fit,
    labels,
    pixels,
    small,
    state,
    trainer,
    without_seconds,
)

import pyoptim as po
from pyoptim import nn
from pyoptim.arrays import gpu as gpu_module
from pyoptim.arrays.gpu import DeviceArray
from pyoptim.backends.gpu.constants import PLAN
from pyoptim.train import cuda_engine

native = pytest.importorskip("pyoptim.backends.native", reason="what is compared with", exc_type=ImportError)


@pytest.fixture(autouse=True)
def own_products(monkeypatch):
    """The libraries' stand-ins cannot be captured."""
    monkeypatch.setenv("PYOPTIM_CUBLAS", "off")


@pytest.fixture(params=["cuda", "cupy"])
def gpu(request, cuda, no_gpu, monkeypatch):
    """The emulated device, by either launcher."""
    {"cuda": use_cuda, "cupy": use_cupy}[request.param](monkeypatch, cuda)


def test_an_objective_on_the_gpu_is_that_of_the_processor(gpu):
    rng = np.random.default_rng(0)
    x, y, penalty = pixels(rng), labels(rng), nn.Penalty(l2=0.1)
    weight = rng.random(len(x))
    found = []
    for where in ("cpu", "cuda"):
        model = every_layer().to(where)
        objective = po.Objective(model, nn.CrossEntropy(), x, y, penalty, sample_weight=weight)
        w = objective.parameters
        value, gradient = objective.value_and_gradient(w + 0.125)
        np.testing.assert_array_equal(objective.parameters, w)
        objective.set_parameters(w - 0.125)
        product = objective.hessian_vector(w, gradient)
        found.append({"value": value, "gradient": gradient, "product": product, **model.state_dict()})
    assert objective.path == "python"
    assert objective.reason == "the model is on a GPU"
    assert_close(found[0], found[1])


@pytest.fixture
def long_chunks(monkeypatch):
    """Chunks end with the epoch, though the emulator is slow."""
    monkeypatch.setattr(cuda_engine, "_CHUNK", 1e6)


@pytest.fixture
def rng():
    return np.random.default_rng(23)


def images():
    """(channels, height, width), with a frozen layer below."""
    layers = nn.BatchNorm(2, affine=False), nn.Flatten(), nn.Dense(6, 5, bias=False), nn.GELU()
    model = nn.Sequential(*layers, nn.Dense(5, 3), nn.LogSoftmax(), seed=2, dtype=np.float64)
    model.layers[2].trainable = False
    return model


def matrices(dtype=np.float64):
    """What Muon takes."""
    layers = nn.Dense(6, 5, bias=False), nn.Tanh(), nn.Dense(5, 3, bias=False)
    return nn.Sequential(*layers, seed=3, dtype=dtype)


# ---- training --------------------------------------------------------------------------------------

SHARES = np.random.default_rng(1).dirichlet(np.ones(3), 23)
LOSSES = [
    (nn.CrossEntropy(class_weight=[1.0, 2.0, 0.5], label_smoothing=0.1), None),
    (nn.CrossEntropy(), SHARES),
    (nn.KLDiv(2.0), SHARES),
    (nn.BinaryCrossEntropy(np.array([1.0, 2.0, 3.0])), SHARES),
    *[
        (loss, kinds.pointwise_targets(loss.kind, np.random.default_rng(2), (23, 3)))
        for loss in kinds.pointwise_losses()
    ],
]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_layer_trains_as_on_the_cpu(gpu, rng, shuffle, weighted):
    x, y = pixels(rng), labels(rng)
    weight = rng.uniform(0.5, 2, len(x)) if weighted else None
    options = {"shuffle": shuffle, "sample_weight": weight, "validation_data": (x[:10], y[:10])}
    made = {
        (where, engine): trainer(every_layer(), where, max_grad_norm=0.5)
        for where, engine in (("cpu", "native"), ("cuda", "native"), ("cuda", "python"))
    }
    histories = {key: fit(made[key], x, y, engine=key[1], **options) for key in made}
    assert [h.path for h in histories.values()] == ["native", "cuda", "python"]
    assert_same(state(made["cuda", "native"]), state(made["cuda", "python"]))
    launched = without_seconds(histories["cuda", "native"])
    assert launched == without_seconds(histories["cuda", "python"])
    assert_close(state(made["cpu", "native"]), state(made["cuda", "native"]))
    assert_close(without_seconds(histories["cpu", "native"]), launched)
    assert made["cuda", "native"].model.state_dict()["3.step"] == 9


@pytest.mark.parametrize(("loss", "target"), LOSSES, ids=lambda value: repr(value)[:30])
def test_losses(gpu, rng, loss, target):
    x, y = rng.normal(size=(23, 2, 3)), labels(rng) if target is None else target
    here, there = trainer(images(), "cpu", loss), trainer(images(), "cuda", loss)
    a, b = fit(here, x, y), fit(there, x, y)
    assert b.path == "cuda"
    assert_close(state(here), state(there))
    assert_close(without_seconds(a), without_seconds(b))
    assert_close(here.evaluate(x, y), there.evaluate(x, y))
    np.testing.assert_allclose(here.predict(x), there.predict(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", kinds.LAYERS)
def test_each_layer(gpu, rng, name):
    x, y = pixels(rng), labels(rng)
    made = []
    for where in ("cpu", "cuda"):
        layers = nn.Dense(6, 8), kinds.layer(name), nn.Residual(kinds.layer(name)), nn.Dense(8, 3)
        model = nn.Sequential(*layers, seed=1, dtype=np.float64)
        # Adam would magnify rounding: a bias before a BatchNorm has a gradient of 0.
        made.append(trainer(model, where, make=po.SGD))
        assert fit(made[-1], x / 255, y).path == ("native" if where == "cpu" else "cuda")
    assert_close(*map(state, made))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (po.SGD, {"momentum": 0.9, "nesterov": True, "lr": po.schedules.OneCycle(0.1, 40)}),
        (po.AdamW, {"weight_decay": 0.1, "max_grad_norm": 0.1}),
        (po.NAdam, {"maximize": True}),
        (po.Rprop, {}),
        (po.ASGD, {"lr": po.schedules.Constant(0.01, unit="epoch")}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_optimizers(emulated, rng, make, options, dtype):
    x, y = pixels(rng), labels(rng)
    made = [trainer(small(dtype), where, make=make, **options) for where in ("cpu", "cuda", "cuda")]
    paths = [fit(one, x, y, engine=engine).path for one, engine in
             zip(made, ("native", "native", "python"), strict=True)]  # fmt: skip
    assert paths == ["native", "cuda", "python"]
    assert_same(state(made[1]), state(made[2]))
    if make is not po.Rprop:  # which goes by signs, and turns them over at a last bit
        assert_close(state(made[0]), state(made[1]), 1e-9 if dtype == np.float64 else 1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (po.Adafactor, {"lr": po.schedules.OneCycle(0.1, 40), "max_grad_norm": 0.1}),
        (po.Adafactor, {"weight_decay": 0.1, "d": 1.5}),
        (po.Muon, {"max_grad_norm": 0.1, "eps": 1.0}),
        (po.Muon, {"nesterov": False, "ns_steps": 2, "eps": 0.5, "lr": po.schedules.OneCycle(0.1, 40)}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_optimizers_of_whole_tensors_are_captured(emulated, rng, make, options, dtype):
    x, y = pixels(rng), labels(rng)

    model = matrices if make is po.Muon else small
    made = [trainer(model(dtype), where, make=make, **options) for where in ("cpu", "cuda", "cuda")]
    paths = [fit(one, x, y, engine=engine).path for one, engine in
             zip(made, ("python", "native", "python"), strict=True)]  # fmt: skip
    assert paths == ["python", "cuda", "python"]
    assert_same(state(made[1]), state(made[2]))
    assert_close(state(made[0]), state(made[1]), 1e-9 if dtype == np.float64 else 1e-3)


def test_other_iterations_are_captured_anew(emulated, rng):
    x, y = pixels(rng), labels(rng)
    made = []
    for engine in ("native", "python"):
        one = trainer(matrices(), "cuda", make=po.Muon, eps=1.0)
        for turns in (2, 5, 1):
            one.optimizer.param_groups[0]["ns_steps"] = turns
            fit(one, x, y, engine=engine)
            one.optimizer.param_groups[0]["ns_steps"] = turns + 1
            one.optimizer.step(one.model.gradients())  # between two launches of the same graph
            one.optimizer.param_groups[0]["ns_steps"] = turns
            fit(one, x, y, engine=engine)
        made.append(one)
    assert_same(state(made[0]), state(made[1]))


def test_parameter_groups_of_several_rules(emulated, rng):
    x, y = pixels(rng), labels(rng)
    made = []
    for where in ("cpu", "cuda"):
        model = small().to(where)
        named = model.parameters()
        groups = [{"params": {name: p}, "lr": 0.01 * (i + 1), "momentum": 0.5 * (i % 2)}
                  for i, (name, p) in enumerate(named.items())]  # fmt: skip
        made.append(po.Trainer(model, nn.CrossEntropy(), po.SGD(groups, max_grad_norm=0.5), seed=4))
        assert fit(made[-1], x, y).path == ("cuda" if where == "cuda" else "native")
    assert_close(state(made[0]), state(made[1]))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100, None])
def test_sizes_of_batches(emulated, rng, batch_size):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    here, there = trainer(small()), trainer(small(), "cuda")
    a, b = (fit(one, x, y, batch_size=batch_size, epochs=2) for one in (here, there))
    assert_close(state(here), state(there))
    assert_close(without_seconds(a), without_seconds(b))


GENERIC = {
    "nonfinite is 'skip'": {"nonfinite": "skip"},
    "the optimizer accumulates": {"accumulate": 2},
    "lr is a function of your own": {"lr": lambda step: 0.01 / (step + 1)},
    "transform acts on every batch": {"transform": lambda x, y, rng: (x + rng.normal(size=x.shape), y)},
}


@pytest.mark.parametrize("reason", GENERIC)
def test_what_cannot_be_captured_takes_the_generic_loop(emulated, rng, reason):
    x, y, options = pixels(rng), labels(rng), dict(GENERIC[reason])
    at_fit = {name: options.pop(name) for name in ("transform",) if name in options}
    here, there = trainer(small(), **options), trainer(small(), "cuda", **options)
    fit(here, x, y, **at_fit)
    history = fit(there, x, y, **at_fit)
    assert history.path == "python"
    assert reason in history.reason
    assert_close(state(here), state(there))


@pytest.mark.parametrize(
    "options", [{"make": po.LAMB}, {"state_dtype": "bfloat16"}, {"average": po.averages.EMA}]
)
def test_other_optimizers_and_averages_take_the_generic_loop(emulated, rng, options):
    if "state_dtype" in options:
        pytest.importorskip("ml_dtypes")
    options, averages = dict(options), []
    average = options.pop("average", None)
    made = [trainer(small(np.float32), where, **options) for where in ("cpu", "cuda")]
    for one in made:
        averages.append(None if average is None else average(one.optimizer))
        history = fit(one, pixels(np.random.default_rng(1)), labels(np.random.default_rng(2)))
    assert history.path == "python"
    assert_close(made[0].model.state_dict(), made[1].model.state_dict(), 1e-3)
    if average is not None:
        for here, there in zip(*(one.averages for one in averages), strict=True):
            np.testing.assert_allclose(here, there.numpy(), rtol=1e-3, atol=1e-3)


PENALTY = nn.Penalty(l2=0.1, l1=0.01, biases=True)


@pytest.mark.parametrize("penalty", [None, PENALTY, nn.Penalty(0.1, batch_norm=True)])
@pytest.mark.parametrize("weight_noise", [0.0, 0.03])
def test_penalties_and_noise(gpu, rng, penalty, weight_noise):
    x, y = pixels(rng), labels(rng)
    models = [every_layer() for _ in range(3)]
    for model in models:
        model.flat_parameters += 0.2  # of biases at 0 rounding errors would decide the sign
    made = [trainer(model, where, penalty=penalty, max_grad_norm=0.5) for model, where in
            zip(models, ("cpu", "cuda", "cuda"), strict=True)]  # fmt: skip
    histories = [fit(one, x, y, engine=engine, weight_noise=weight_noise) for one, engine in
                 zip(made, ("native", "native", "python"), strict=True)]  # fmt: skip
    assert [h.path for h in histories] == ["native", "cuda", "python"]
    assert_same(state(made[1]), state(made[2]))
    assert without_seconds(histories[1]) == without_seconds(histories[2])
    assert_close(state(made[0]), state(made[1]))
    assert_close(without_seconds(histories[0]), without_seconds(histories[1]))
    assert made[0].partial_fit(x, y) == pytest.approx(made[1].partial_fit(x, y), rel=1e-9)
    if penalty is not None:  # by itself, as a number
        assert penalty.add(made[0].model) == pytest.approx(penalty.add(made[1].model), rel=1e-9)


@pytest.mark.parametrize("others", [{}, {"penalty": nn.Penalty(l2=0.1), "max_grad_norm": 0.5}], ids=repr)
def test_sharpness_aware_steps(gpu, rng, others):
    x, y = pixels(rng), labels(rng)
    made = {
        (where, engine): trainer(every_layer(), where, **others)
        for where, engine in (("cpu", "native"), ("cuda", "native"), ("cuda", "python"))
    }
    for (_, engine), one in made.items():
        one.sharpness_aware = 0.2
        fit(one, x, y, engine=engine, weight_noise=0.01)
    assert_same(state(made["cuda", "native"]), state(made["cuda", "python"]))
    assert_close(state(made["cpu", "native"]), state(made["cuda", "native"]))
    other = made["cuda", "native"]  # another radius is captured anew
    here = made["cpu", "native"]
    for one in (here, other):
        one.sharpness_aware = 0.0
        fit(one, x, y, epochs=1)
    assert_close(state(here), state(other))


def test_noise_of_another_epoch_is_captured_anew(emulated, rng):
    """Where no layer counts steps, too."""
    x, y = pixels(rng), labels(rng)
    made = [trainer(nn.Sequential(nn.Dense(6, 3), seed=0, dtype=np.float64), "cuda") for _ in range(2)]
    for one, engine in zip(made, ("native", "python"), strict=True):
        fit(one, x, y, engine=engine, weight_noise=0.1)
    assert_same(state(made[0]), state(made[1]))


def test_a_penalty_of_nothing(emulated, rng):
    x, y = pixels(rng), labels(rng)
    made = [trainer(images_without_weights(), "cuda", penalty=p) for p in (None, nn.Penalty(0.5))]
    histories = [without_seconds(fit(one, x, y)) for one in made]
    assert histories[0] == histories[1]
    assert_same(state(made[0]), state(made[1]))


def images_without_weights():
    return nn.Sequential(nn.BatchNorm(6), nn.Tanh(), seed=0, dtype=np.float64)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_penalties_and_noise_wait_for_no_copy(recorder, long_chunks, rng, engine):
    """Of parameters or gradients to the processor and back."""
    x, y, counts = pixels(rng, 64), labels(rng, 64), []
    for penalty, noise in ((None, 0.0), (PENALTY, 0.0), (PENALTY, 0.01)):
        model = nn.Sequential(nn.Dense(6, 40), nn.Dense(40, 3), seed=0, dtype=np.float64)
        made = trainer(model, "cuda", penalty=penalty)
        recorder.log.clear()
        fit(made, x, y, epochs=1, engine=engine, weight_noise=noise)
        large = [entry for entry in recorder.all("copy") if entry[1] == model.flat_parameters.nbytes]
        counts.append((len(recorder.all("synchronize")), len(recorder.all("copy")), len(large)))
    (waits, copies, _), (waits_too, copies_too, none), (still, more, large) = counts
    assert (waits, copies, none) == (waits_too, copies_too, 0)
    # Noise: parameters are kept and put back within the device, by a step that is run or captured.
    steps = 2 if engine == "native" else 8
    assert (still, more, large) == (waits, copies + 2 * steps, 2 * steps)


def test_steps_are_launches_of_graphs(recorder, long_chunks, rng):
    x, y = pixels(rng, 8 * 20 + 3), labels(rng, 8 * 20 + 3)
    made = trainer(small(), "cuda")
    recorder.log.clear()
    fit(made, x, y, epochs=1)
    first = len(recorder.all("launch"))
    recorder.log.clear()
    history = fit(made, x, y, epochs=6)
    assert history.path == "cuda"
    # Each size of batch is run once and captured once: the first epoch did, but for capturing the last batch.
    assert len(recorder.all("stream")) == 3  # that of a capture, and those beside it
    assert len(recorder.all("graph")) == 6 * 21
    assert len(recorder.all("launch")) < first
    # Chunks of 1, 4, 16 steps at first, then of all but the last batch, which is one of its own.
    assert len(recorder.all("synchronize")) < 40
    assert {stream for _, _, stream in recorder.all("graph")} == {1}
    # Bytes stay bytes: nothing as large as the examples in the model's dtype is copied.
    assert max(size for _, size, _ in recorder.all("copy")) < x.size * 8
    captured = {stream for _, _, stream in recorder.all("stream")}
    assert not captured & {stream for _, _, stream in recorder.all("copy", "synchronize")}


def test_what_no_layer_waits_for_is_captured_beside_the_layers(recorder, long_chunks, rng):
    model = nn.Sequential(nn.Dense(6, 5, activation="tanh"), nn.Dense(5, 4), nn.Dense(4, 3), seed=0)
    fit(trainer(model, "cuda"), pixels(rng, 32), labels(rng, 32), batch_size=8, epochs=1)
    main, first, second = (stream for _, _, stream in recorder.all("stream"))
    captured = {
        stream: [kernel.partition("<")[0] for _, kernel, on in recorder.all("launch") if on == stream]
        for stream in (main, first, second)
    }
    layers = ["product", "activation_forward", "product", "product"]
    back = ["product", "product", "activation_backward", "product"]
    assert captured[main] == ["gather_rows", *layers, "cross_entropy", *back, "step", "finish_step"]
    beside = ["gather_rows", "scale_rows", "total", "count_right", *["column_sum"] * 3, *["product"] * 2]
    assert sorted(captured[first] + captured[second]) == sorted(beside)


OTHERS = np.random.default_rng(2)
ANEW = OTHERS.normal(size=(23, 6)), OTHERS.integers(0, 3, 23)
CHANGES = {  # before a second fit: its data and arguments, what is set on the trainer, what is captured anew
    "other examples": (ANEW, {}, None, 0),
    "more of them": ((OTHERS.normal(size=(31, 6)), OTHERS.integers(0, 3, 31)), {}, None, 0),
    "another last batch": ((ANEW[0][1:], ANEW[1][1:]), {}, None, 1),
    "bytes": ((OTHERS.integers(0, 256, (23, 6)).astype(np.uint8), ANEW[1]), {}, None, 2),
    "shares": ((ANEW[0], SHARES), {}, None, 2),
    "weights": (ANEW, {"sample_weight": OTHERS.uniform(0.5, 2, 23)}, None, 2),
    "no shuffling": (ANEW, {"shuffle": False}, None, 2),
    "another size": (ANEW, {"batch_size": 6}, None, 2),
    "the rate": (ANEW, {}, lambda one: one.optimizer.param_groups[0].update(lr=0.5), 0),
    "clipping": (ANEW, {}, lambda one: setattr(one.optimizer, "max_grad_norm", 0.1), 2),
    "an optimizer": (
        ANEW,
        {},
        lambda one: setattr(one, "optimizer", po.SGD(one.model.parameters(), lr=0.1)),
        2,
    ),
    "a loss": (ANEW, {}, lambda one: setattr(one, "loss", nn.CrossEntropy(label_smoothing=0.1)), 2),
    "its smoothing": (ANEW, {}, lambda one: setattr(one.loss, "label_smoothing", 0.1), 2),
    "a step between": (ANEW, {}, lambda one: one.partial_fit(*ANEW), 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_second_fit_captures_what_is_new_alone(recorder, rng, change):
    """The data of the first are gone, and others may lie where they were; the generic loop has no graphs."""
    data, arguments, set_on, captured = CHANGES[change]
    x, y, made = rng.normal(size=(23, 6)), labels(rng), []
    for engine in ("native", "python"):
        one = trainer(small(), "cuda")
        fit(one, x, y, engine=engine)
        if set_on is not None:
            set_on(one)
        recorder.log.clear()
        history = fit(one, *data, engine=engine, **arguments)
        assert history.path == {"native": "cuda", "python": "python"}[engine]
        if engine == "native":
            assert len(recorder.all("stream")) == 3 * captured
        made.append({**state(one), "loss": history["loss"]})
    assert_same(*made)


def test_data_of_many_lengths_leave_so_many_graphs(recorder, rng, monkeypatch):
    monkeypatch.setattr(cuda_engine, "_GRAPHS", 3)
    made = [trainer(small(), "cuda") for _ in range(2)]
    for n in (15, 12, 13, 14, 15, 15):
        x, y = rng.normal(size=(n, 6)), labels(rng, n)
        recorder.log.clear()
        for one, engine in zip(made, ("native", "python"), strict=True):
            fit(one, x, y, engine=engine)
    assert len(made[0]._engine._graphs) == 3
    assert not recorder.all("stream")  # the last had just been there
    assert_same(state(made[0]), state(made[1]))


def test_nothing_holds_the_data_of_a_training_that_is_over(gpu, rng):
    """Nor of one that failed."""

    class Stops(po.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            raise KeyboardInterrupt

    one = trainer(small(), "cuda")
    for callbacks in ([], [Stops()]):
        x = OnDevice(rng.normal(size=(23, 6)))
        gone = weakref.ref(x)
        with contextlib.suppress(KeyboardInterrupt):
            fit(one, x, labels(rng), callbacks=callbacks)
        del x
        gc.collect()
        assert gone() is None


def test_a_model_that_was_moved_is_captured_anew(recorder, rng):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    one, other = trainer(small(), "cuda"), trainer(small(), "cuda")
    fit(one, x, y)
    fit(other, x, y)
    one.model.to("cpu").to("cuda")
    for made in (one, other):
        made.optimizer = po.SGD(made.model.parameters(), lr=0.1)
        recorder.log.clear()
        fit(made, x, y)
        assert len(recorder.all("stream")) == 2 * 3
    assert_same(state(one), state(other))


def test_more_steps_than_a_plan_holds(emulated, long_chunks, rng):
    x, y = rng.normal(size=(PLAN + 400, 1)), rng.normal(size=(PLAN + 400, 1))
    made = [trainer(nn.Sequential(nn.Dense(1, 1), seed=0), where, nn.MSE(), po.SGD) for where in
            ("cpu", "cuda")]  # fmt: skip
    for one in made:
        fit(one, x, y, batch_size=1, epochs=1, shuffle=False)
    assert_close(state(made[0]), state(made[1]), 1e-3)


def test_partial_fit(gpu, rng):
    x, y = pixels(rng), labels(rng)
    here, there = trainer(small()), trainer(small(), "cuda")
    for _ in range(3):
        assert here.partial_fit(x, y) == pytest.approx(there.partial_fit(x, y), rel=1e-12)
    fit(here, x, y)  # and the counters go on from there
    fit(there, x, y)
    assert_close(state(here), state(there))


class Changes(po.callbacks.Callback):
    """Alters what graphs hold."""

    def on_epoch_end(self, epoch, logs):
        model, optimizer = self.trainer.model, self.trainer.optimizer
        if epoch == 1:
            optimizer.param_groups[0]["lr"] = 0.05
        elif epoch == 2:
            model.layers[1].p = 0.6
            optimizer.max_grad_norm = 0.01
        elif epoch == 3:  # one counter goes its own way
            model.layers[1].buffers["step"][...] = 77
        elif epoch == 4:
            model.layers[1].buffers["seed"][...] = 5
        elif epoch == 6:
            self.trainer.penalty = nn.Penalty(0.2)
        elif epoch == 7:
            self.trainer.penalty.l1 = 0.1
        elif epoch == 8:
            self.trainer.penalty = nn.Penalty(0.1, biases=True)
        elif epoch == 5:  # gradients of other memory, meanwhile
            gradients = {name: p.copy() for name, p in self.trainer.model.gradients().items()}
            optimizer.step(gradients)


def test_callbacks_may_change_what_was_captured(emulated, long_chunks, rng):
    x, y = pixels(rng), labels(rng)

    def counting():  # in two places
        layers = nn.Dense(6, 5), nn.Dropout(0.3), nn.BatchNorm(5, momentum=None), nn.Dense(5, 3)
        return trainer(nn.Sequential(*layers, seed=3, dtype=np.float64), "cuda")

    made = [counting(), counting()]
    for one, engine in zip(made, ("native", "python"), strict=True):
        fit(one, x, y, engine=engine, epochs=11, callbacks=[Changes()])
    assert_same(state(made[0]), state(made[1]))


def test_statistics_are_made_anew(emulated, rng):
    x, y, found = pixels(rng, 21), labels(rng, 21), []
    for where in ("cpu", "cuda"):
        layers = nn.Dense(6, 5), nn.BatchNorm(5), nn.Dense(5, 3), nn.BatchNorm(3, momentum=None)
        one = trainer(nn.Sequential(*layers, seed=3, dtype=np.float64), where)
        fit(one, x, y, epochs=1)
        po.averages.update_bn(one.model, x, 8)
        found.append(state(one))
    assert_close(*found)


def test_callbacks_that_look_at_the_model(emulated, rng, tmp_path):
    x, y = pixels(rng), labels(rng)
    callbacks = po.callbacks
    both = []
    for where in ("cpu", "cuda"):
        statistics = callbacks.ActivationStatistics(x, 2, unit=1)
        stopping = callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
        saved = callbacks.ModelCheckpoint(tmp_path / where, save_best_only=False)
        one = trainer(small(), where, lr=0.3)
        fit(one, x, y, validation_split=0.3, epochs=6, callbacks=[statistics, stopping, saved])
        both.append((one, statistics.values, nn.Sequential.load(tmp_path / where)))
    assert_close(state(both[0][0]), state(both[1][0]))
    np.testing.assert_allclose(both[0][1], both[1][1])
    assert_close(both[0][2].state_dict(), both[1][2].state_dict())


class Outputs(po.callbacks.Callback):
    """Keeps outputs in the GPU's memory, with copies."""

    def __init__(self, x):
        self.x, self.there, self.here = x, [], []

    def on_epoch_end(self, epoch, logs):
        self.there.append(self.trainer.model(OnDevice(self.x)))
        self.here.append(self.there[-1].numpy())


def test_what_a_graph_writes_is_nobody_else_s(emulated, long_chunks, rng):
    x, y = rng.normal(size=(24, 6)), labels(rng, 24)
    outputs = Outputs(x[:8])
    fit(trainer(small(), "cuda"), x, y, epochs=5, callbacks=[outputs])
    assert len(outputs.here) == 5
    for there, here in zip(outputs.there, outputs.here, strict=True):
        np.testing.assert_array_equal(there.numpy(), here)


@pytest.mark.parametrize("launches", [0, 1, 7])
def test_an_interrupt_leaves_what_the_steps_so_far_made(emulated, long_chunks, rng, launches, monkeypatch):
    x, y = pixels(rng, 160), labels(rng, 160)
    made = [trainer(small(), "cuda", lr=po.schedules.OneCycle(0.1, 60)) for _ in range(2)]
    launch = cuda_engine._Graph.__init__
    left = [launches]

    def interrupted(graph, *arguments):
        launch(graph, *arguments)
        real = graph.launch

        def count(stream):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real(stream)

        graph.launch = count

    monkeypatch.setattr(cuda_engine._Graph, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(made[0], x, y, shuffle=False)
    steps = launches + 1
    for i in range(steps):
        rows = slice(8 * i, 8 * i + 8)
        made[1].partial_fit(x[rows], y[rows])
    assert_same(state(made[0]), state(made[1]))


# ---- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["cpu", "cuda"])
@pytest.mark.parametrize("then", ["cpu", "cuda"])
def test_a_training_goes_on_elsewhere(emulated, rng, tmp_path, first, then):
    x, y, path = pixels(rng), labels(rng), tmp_path / "training"
    whole = trainer(every_layer())
    expected = fit(whole, x, y, epochs=4)
    fit(trainer(every_layer(), first), x, y, epochs=2, checkpoint=path)
    resumed = trainer(every_layer(), then)
    history = fit(resumed, x, y, epochs=4, checkpoint=path)
    assert_close(state(whole), state(resumed))
    assert_close(without_seconds(expected), without_seconds(history))


@pytest.mark.parametrize("options", [{}, {"weight_noise": 0.02}, {"weight_noise": 0.02, "shuffle": False}])
def test_a_resume_within_an_epoch_has_the_same_bits(emulated, rng, tmp_path, monkeypatch, options):
    x, y, path = pixels(rng, 50), labels(rng, 50), tmp_path / "training"

    def fit(trainer, x, y, **more):
        return trainer.fit(x, y, batch_size=8, verbose=False, **options, **more)

    def trainer(*arguments):
        return globals()["trainer"](*arguments, penalty=PENALTY)

    whole = trainer(every_layer(), "cuda")
    fit(whole, x, y, epochs=2)
    saves, save = [], po.train.resume.Resume.save

    def stopping(resume, epoch, history):
        save(resume, epoch, history)
        saves.append(epoch.done)
        if len(saves) == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(po.train.resume.Resume, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(trainer(every_layer(), "cuda"), x, y, epochs=2, checkpoint=path, checkpoint_every=0)
    assert 0 < saves[-1] < 50
    resumed = trainer(every_layer(), "cuda")
    fit(resumed, x, y, epochs=2, checkpoint=path)
    assert_same(state(whole), state(resumed))


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_models_and_optimizers_are_saved_and_loaded(emulated, rng, tmp_path, where):
    x, y = pixels(rng), labels(rng)
    one = trainer(every_layer(), where)
    fit(one, x, y)
    one.model.save(tmp_path / "model")
    one.optimizer.save(tmp_path / "optimizer")
    loaded = nn.Sequential.load(tmp_path / "model")
    assert loaded.device == "cpu"
    assert_same(loaded.state_dict(), one.model.state_dict())
    other = trainer(loaded, "cuda" if where == "cpu" else "cpu")
    other.optimizer.load(tmp_path / "optimizer")
    assert_same(state(one), state(other))


# ---- models ----------------------------------------------------------------------------------------


def test_a_model_moves_there_and_back(gpu, rng):
    model, x = every_layer().eval(), pixels(rng)
    before, outputs = model.state_dict(), model(x)
    assert model.to("cuda") is model
    assert model.device == "cuda:0"
    for device in ("cpu", "cuda:0"):  # is it there, nothing is moved: what was made on its arrays stays good
        flat = model.to(device).flat_parameters
        assert model.to(device).flat_parameters is flat
    arrays = (*model.parameters().values(), model.flat_gradients)
    assert all(isinstance(array, DeviceArray) for array in arrays)
    kinds = {name: type(value) for layer in model.leaves().values() for name, value in layer.buffers.items()}
    there, here = DeviceArray, np.ndarray
    assert kinds == {"running_mean": there, "running_var": there, "num_batches_tracked": here, "seed": here,
                     "step": here}  # fmt: skip
    assert_same(model.state_dict(), before)
    queues = {id(p.queue) for p in model._named("parameters", "buffers").values() if isinstance(p, there)}
    assert queues == {id(model._place.queue)}
    assert po.Adam(model.parameters())._place.queue is model._place.queue
    np.testing.assert_allclose(model(x), outputs, rtol=1e-12)
    assert model.summary() == every_layer().summary()
    model.to("cpu")
    assert model.device == "cpu"
    assert_same(model.state_dict(), before)
    np.testing.assert_array_equal(model(x), outputs)
    assert_same(pickle.loads(pickle.dumps(model)).state_dict(), before)


def test_parameters_are_written_as_numpy_s(emulated, rng):
    model = small().to("cuda")
    weight, bias = model.parameters()["0.weight"], model.parameters()["0.bias"]
    values = rng.normal(size=weight.shape)
    weight[:] = values
    weight[1:3] = 7.0
    values[1:3] = 7
    np.testing.assert_array_equal(weight, values)
    bias[2:4] = bias[:2]
    elsewhere = DeviceArray(weight.address, weight.shape, weight.dtype, 1, None)
    with pytest.raises(ValueError, match=r"value is .* device=1\), expected .* and device 0"):
        weight[...] = elsewhere
    with pytest.raises(ValueError, match=r"value is DeviceArray\(shape=\(5,\).*expected shape \(5, 6\)"):
        weight[...] = bias
    with pytest.raises(TypeError, match="index is 0, expected a slice"):
        weight[0] = 1.0
    np.testing.assert_array_equal(weight, values)


def test_forward_and_backward_of_arrays_of_either_memory(gpu, rng):
    model, x, dy = small(), rng.normal(size=(7, 6)), rng.normal(size=(7, 3))
    model.eval()
    y, dx = model(x), model.backward(dy, need_dx=True)
    gradients = {name: value.copy() for name, value in model.gradients().items()}
    model.to("cuda")
    there = model(x)
    assert type(there) is np.ndarray
    np.testing.assert_allclose(there, y, rtol=1e-12)
    np.testing.assert_allclose(model.backward(dy, need_dx=True), dx, rtol=1e-12)
    assert model.backward(dy) is None
    assert_close({name: np.asarray(g) for name, g in model.gradients().items()}, gradients, 1e-12)
    there = model(OnDevice(x))
    assert isinstance(there, DeviceArray)
    np.testing.assert_allclose(there.numpy(), y, rtol=1e-12)
    np.testing.assert_allclose(model.backward(OnDevice(dy), need_dx=True).numpy(), dx, rtol=1e-12)
    again = model(gpu_module.constant(there.queue, x))  # what one model returns another takes
    np.testing.assert_array_equal(again.numpy(), there.numpy())


def test_a_loop_of_one_s_own(gpu, rng):
    x, y, weight = rng.normal(size=(9, 6)), labels(rng, 9), rng.uniform(size=9)
    made = [trainer(small(), where) for where in ("cpu", "cuda")]
    losses = []
    for one, inputs in zip(made, (x, OnDevice(x)), strict=True):
        for _ in range(3):
            value, gradient = nn.CrossEntropy()(one.model(inputs), y, weight)
            assert type(gradient) is type(one.model.flat_gradients)
            one.model.backward(gradient)
            one.optimizer.step(one.model.gradients())
            losses.append(value)
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-12)
    assert_close(state(made[0]), state(made[1]))


def test_the_second_gpu(recorder, rng, monkeypatch):
    monkeypatch.setenv("PYOPTIM_EMULATED_DEVICES", "2")
    x, y = pixels(rng), labels(rng)
    one = trainer(small(), "cuda:1")
    assert (one.model.device, one.model.flat_parameters.device) == ("cuda:1", 1)
    assert fit(one, x, y, validation_data=(x, y)).path == "cuda"
    one.predict(x)
    assert recorder.used == {1}
    assert recorder.current == 0
    before = one.model.state_dict()
    assert one.model.to("cuda").device == "cuda:0"
    assert_same(one.model.state_dict(), before)


def test_somebody_s_arrays_are_waited_for_and_wait(recorder, rng):
    model = small().to("cuda").eval()
    model(rng.normal(size=(7, 6)))
    recorder.log.clear()
    model(OnDevice(rng.normal(size=(7, 6)), stream=77))
    events = [(kind, stream) for kind, _, stream in recorder.log if kind != "launch"]
    assert events[:2] == [("record", 77), ("hold", 1)]
    assert events[-2:] == [("record", 1), ("hold", 77)]
    assert not recorder.all("copy", "synchronize")[1:]  # the copy of the output


@pytest.mark.parametrize("ours", [True, False])
def test_somebody_s_array_waits_for_backward_which_reads_it(recorder, rng, ours):
    """Wherever the gradient comes from; and on the stream that is its owner's by then."""
    model, x = small().to("cuda"), OnDevice(rng.normal(size=(7, 6)), stream=77)
    loss, labels = nn.CrossEntropy(), rng.integers(0, 3, 7)
    _, dy = loss(model(x), labels)
    x.stream = 78
    recorder.log.clear()
    model.backward(dy if ours else dy.numpy())
    assert [(kind, stream) for kind, _, stream in recorder.log[-2:]] == [("record", 1), ("hold", 78)]
    _, dy = loss(model(x.array), labels)
    recorder.log.clear()
    model.backward(np.asarray(dy))
    assert not any(stream == 78 for _, _, stream in recorder.log)


def test_results_of_ops_are_waited_for_and_wait(recorder, rng):
    """They are our own arrays, on the stream of what they were made of."""
    model = small().to("cuda").eval()
    optimizer = po.SGD(model.parameters())
    x = po.ops.activation_forward(OnDevice(rng.normal(size=(7, 6)), stream=77), "relu")
    grads = {
        name: po.ops.activation_forward(OnDevice(rng.normal(size=p.shape), stream=78), "relu")
        for name, p in model.parameters().items()
    }
    recorder.log.clear()
    model(x)
    last = id(x.queue._last.event)  # of all work on such arrays, on whatever stream
    assert recorder.log[0] == ("hold", last, 1)
    assert [(kind, stream) for kind, _, stream in recorder.log[-2:]] == [("record", 1), ("hold", 77)]
    recorder.log.clear()
    po.ops.activation_forward(OnDevice(np.ones(3), stream=79), "relu")  # takes memory that x may give back
    assert recorder.log[:2] == [("record", last, 1), ("hold", last, 79)]
    optimizer.step(grads)
    recorder.log.clear()
    optimizer.step(grads)
    assert {stream for _, _, stream in recorder.all("launch")} == {78}


def test_data_in_a_gpu_s_memory(gpu, rng):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    one, other = trainer(small(), "cuda"), trainer(small(), "cuda")
    histories = [fit(one, x, y), fit(other, OnDevice(x), y)]
    assert without_seconds(histories[0]) == without_seconds(histories[1])
    assert_same(state(one), state(other))
    assert one.evaluate(x, y) == other.evaluate(OnDevice(x), y)
    there = other.predict(OnDevice(x))
    assert isinstance(there, DeviceArray)
    np.testing.assert_array_equal(there.numpy(), one.predict(x))
    with pytest.raises(TypeError, match="transform works on arrays of the processor"):
        fit(other, OnDevice(x), y, transform=lambda x, y, rng: (x, y))


def share_right(targets, outputs):
    return (outputs.argmax(1) == targets).mean()


def test_evaluation_of_several_batches(emulated, rng, monkeypatch):
    monkeypatch.setattr(po.train.evaluation, "_BATCH", 7)
    x, y = pixels(rng), labels(rng)
    metrics = [share_right]
    here, there = (trainer(every_layer(), where, metrics=metrics) for where in ("cpu", "cuda"))
    weight = rng.uniform(size=23)
    measured = there.evaluate(x, y, weight)
    assert measured["share_right"] == measured["accuracy"]
    assert_close(here.evaluate(x, y, weight), measured)
    np.testing.assert_allclose(here.predict(x), there.predict(x), rtol=1e-9)


def test_weighted_means_and_dropped_batches(emulated, rng, monkeypatch):
    """As tests/train/test_measures.py says of the processor."""
    monkeypatch.setattr(po.train.evaluation, "_BATCH", 7)
    x, y = pixels(rng), np.sort(labels(rng))
    options = {"shuffle": False, "validation_data": (x, y), "drop_last": True}
    for weight, smoothing in (([1.0, 10.0, 50.0], 0.1), ([0.0, 0.0, 1.0], 0.0), ([0.0, 0.0, 0.0], 0.1)):
        loss = nn.CrossEntropy(weight, smoothing)
        here, there, generic = (trainer(small(), where, loss) for where in ("cpu", "cuda", "cuda"))
        histories = [fit(one, x, y, **options) for one in (here, there)]
        histories.append(fit(generic, x, y, engine="python", **options))
        assert [h.path for h in histories] == ["native", "cuda", "python"]
        expected, launched, looped = map(without_seconds, histories)
        assert launched == looped
        assert_close(expected, launched)
        assert_close(state(here), state(there))
        exact, _ = loss(there.model.eval().forward(x), y)
        assert there.evaluate(x, y)["loss"] == pytest.approx(exact, rel=1e-9)
    shuffled = [fit(trainer(small(), "cuda"), x, y, engine=e, drop_last=True) for e in ("native", "python")]
    assert without_seconds(shuffled[0]) == without_seconds(shuffled[1])


def test_a_skipped_step_leaves_no_trace(emulated, rng):
    one = trainer(every_layer(), "cuda", nonfinite="skip")
    x, y = pixels(rng), labels(rng)
    one.model.flat_parameters[...] = np.full(one.model.flat_parameters.size, np.nan)
    before = one.model.state_dict()
    history = fit(one, x, y, epochs=1)
    assert np.isnan([*history["loss"], *history["accuracy"]]).all()
    assert one.optimizer.skipped == 3
    assert_same(one.model.state_dict(), before)


def test_outputs_that_are_no_numbers_are_never_right(emulated, rng):
    one = trainer(small(), "cuda")
    one.model.flat_parameters[...] = np.full(one.model.flat_parameters.size, np.nan)
    x, y = pixels(rng), np.zeros(23, np.uint8)
    history = fit(one, x, y, validation_data=(x, y))
    assert history.path == "cuda"
    assert history["accuracy"] == history["val_accuracy"] == [0] * 3


class Own(nn.Layer):
    def forward(self, x, training):
        return x


class OwnLoss(nn.MSE):
    pass


def test_what_a_gpu_does_not_know_is_refused(gpu, rng):
    x, y = pixels(rng), labels(rng)
    model = nn.Sequential(nn.Dense(6, 3), nn.Residual([nn.ReLU(), Own()]))
    before = model.flat_parameters
    with pytest.raises(TypeError, match=r"layers\[1\].block\[1\] is a Own, expected pyoptim.nn's on a GPU"):
        model.to("cuda")
    assert model.flat_parameters is before
    with pytest.raises(ValueError, match=r"'cuda:3', expected at most 'cuda:0': there is 1 GPU$"):
        small().to("cuda:3")
    for wrong in ("gpu", "cuda:", "cuda:-1", "cuda:x", 0, None):
        with pytest.raises(ValueError if isinstance(wrong, str) else TypeError, match="device is"):
            small().to(wrong)
    inner = small()
    nn.Residual(inner)
    with pytest.raises(ValueError, match="belongs to another model"):
        inner.to("cuda")

    model = small()
    optimizer = po.Adam(model.parameters())
    model.to("cuda")
    with pytest.raises(ValueError, match=r"params\['0.weight'\] is not where the model is, on 'cuda:0'"):
        po.Trainer(model, nn.CrossEntropy(), optimizer)
    made = trainer(model, "cuda")
    model.to("cpu")
    with pytest.raises(ValueError, match="is not where the model is, on 'cpu'"):
        fit(made, x, y)
    with pytest.raises(ValueError, match="backward before forward"):
        model.backward(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="x is in a GPU's memory, but the model is not"):
        model(OnDevice(np.zeros((2, 6))))

    made = trainer(small(), "cuda")
    with pytest.raises(TypeError, match=r"loss is a OwnLoss, expected pyoptim\.nn's for a model on a GPU"):
        po.Trainer(made.model, OwnLoss(), made.optimizer)
    with pytest.raises(ValueError, match="parallel is 'hogwild', but the model is on a GPU"):
        fit(made, x, y, parallel="hogwild")
    with pytest.raises(ValueError, match="engine is 'native', but nonfinite is 'raise'"):
        fit(trainer(small(), "cuda", nonfinite="raise"), x, y, engine="native")
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="move the model to 'cpu' before"):
            copied(made.model)
    with pytest.raises(TypeError, match="x has dtype float32, expected float64 or uint8 in a GPU's memory"):
        made.model(OnDevice(np.zeros((2, 6), np.float32)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\)"):
        made.model(OnDevice(np.zeros((2, 5))))
    with pytest.raises(
        TypeError, match="x has dtype <i4, expected float32, float64 or uint8 in a GPU's memory"
    ):
        made.model(OnDevice(np.zeros((2, 6), np.int32)))
    with pytest.raises(ValueError, match="x is on GPU 1, expected 0"):
        made.model(OnDevice(np.zeros((2, 6)), device=1))
    made.model(np.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"dy has shape \(2, 4\), expected \(2, 3\)"):
        made.model.backward(OnDevice(np.zeros((2, 4))))


def test_outputs_of_a_model_there_are_targets(emulated, rng):
    """A teacher's probabilities, say."""
    teacher = nn.Sequential(nn.Dense(6, 3), nn.Softmax(), seed=1, dtype=np.float64).to("cuda")
    student, x = small().to("cuda").eval(), rng.normal(size=(4, 6))
    output, shares = student(OnDevice(x)), teacher(OnDevice(x))
    for loss in (nn.CrossEntropy(), nn.KLDiv(2.0), nn.MSE()):
        assert loss(output, shares)[0] == pytest.approx(loss(np.asarray(output), np.asarray(shares))[0])


def test_without_a_gpu_it_says_why(no_gpu):
    if {"cuda", "cupy"} & set(po.available_backends()):
        pytest.skip("there is a GPU")
    with pytest.raises(po.BackendError, match="arrays in a GPU's memory need a backend for it: "):
        small().to("cuda")


def test_a_capture_that_fails_leaves_the_queue_as_it_was(gpu, rng):
    queue = small().to("cuda")._place.queue

    def synchronizing():
        queue.download(gpu_module.constant(queue, np.zeros(3)).address, np.zeros(3))

    gpu_module.constant(queue, np.zeros(3))
    with pytest.raises(RuntimeError, match="captur"):
        queue.capture(synchronizing)
    there = gpu_module.constant(queue, np.arange(3.0)).copy()
    graph = queue.capture(lambda: queue.clear(there.address + 8, 8))
    np.testing.assert_array_equal(there.numpy(), [0, 1, 2])
    graph.launch(queue.stream)
    np.testing.assert_array_equal(there.numpy(), [0, 0, 2])


# ---- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("products", ["off", ""])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
def test_a_gpu_trains_as_the_cpu(backend, products, rng, monkeypatch):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    monkeypatch.setenv("PYOPTIM_CUBLAS", products)
    x, y = pixels(rng, 300), labels(rng, 300)
    with po.use_backend(backend):
        made = [trainer(every_layer(), "cuda") for _ in range(2)]
        paths = [fit(one, x, y, batch_size=32, engine=engine).path for one, engine in
                 zip(made, ("native", "python"), strict=True)]  # fmt: skip
        assert paths == ["cuda", "python"]
        assert_same(state(made[0]), state(made[1]))
        trained = state(made[0])
    here = trainer(every_layer())
    fit(here, x, y, batch_size=32)
    assert_close(state(here), trained)


def test_pruned_weights_stay_0_on_the_gpu(gpu):
    """In graphs and in the generic loop, with the bits of each other."""
    rng = np.random.default_rng(0)
    x, y, found = pixels(rng), labels(rng), []
    for engine in ("native", "python"):
        model = small(np.float32)
        po.recipes.prune(model, 0.4)
        model.to("cuda")  # with what is kept
        training = trainer(model, "cuda")
        fit(training, x, y, epochs=1, engine=engine)
        kept = po.recipes.prune(model, 0.6)
        history = fit(training, x, y, epochs=2, engine=engine)
        assert history.path == ("cuda" if engine == "native" else "python")
        found.append(model.state_dict())
        for name, mask in kept.items():
            assert ((found[-1][name] != 0) == mask).all()
            assert 0 < mask.sum() < mask.size
    assert_same(*found)
