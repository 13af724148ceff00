"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..arrays import gpu, gpu_data
from ..arrays.memory import empty_like
from ..callbacks import Callback
from ..optim.optimizer import Optimizer
from ..runtime.dtypes import Array
from ..runtime.numbers import check_count
from ..transforms import Transform
from . import cuda_engine
from . import engine as compiled
from .history import History
from .resume import Epoch, Resume
from .weight_noise import WeightNoise, noisy

_EVALUATION_BATCH = 1024


class Trainer:
    """Trains a model by mini-batches.

    Parameters
    ----------
    model : nn.Sequential
    loss : nn.Loss
    optimizer : Optimizer
        Made on all of ``model.parameters()``, in any structure and groups, or, where no layer is frozen, on
        ``model.flat_parameters``.
    seed : int, optional
        Of the order in which examples are visited.
    metrics : sequence of callable
        ``(targets, outputs) -> number``, which `evaluate` and validation measure too: see `metrics`.
    penalty : nn.Penalty, optional
        Added to the loss and its gradient in training, not in evaluation.

    Examples
    --------
    >>> trainer = Trainer(model, nn.CrossEntropy(), Adam(model.parameters()), seed=0)
    >>> history = trainer.fit(x, y, epochs=5, batch_size=32)
    >>> trainer.evaluate(x_test, y_test)["accuracy"]
    """

    def __init__(
        self,
        model: nn.Sequential,
        loss: nn.Loss,
        optimizer: Optimizer,
        *,
        seed: int | None = None,
        metrics: Sequence[Callable[[Array, Array], float]] = (),
        penalty: nn.Penalty | None = None,
    ) -> None:
        if not isinstance(model, nn.Sequential):
            raise TypeError(f"model is a {type(model).__name__}, expected a Sequential")
        if not isinstance(loss, nn.Loss):
            raise TypeError(f"loss is a {type(loss).__name__}, expected a Loss, e.g. CrossEntropy()")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}, expected an Optimizer")
        if penalty is not None and not isinstance(penalty, nn.Penalty):
            raise TypeError(f"penalty is a {type(penalty).__name__}, expected a Penalty or None")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self._find_gradients()
        self._check_there()
        self.stop_training = False  # what a callback sets
        self.resuming = False  # from a checkpoint
        for i, metric in enumerate(metrics):
            if not callable(metric):
                raise TypeError(f"metrics[{i}] is {metric!r}, expected a function of targets and outputs")
        names = ["loss", *map(_metric_name, metrics)]
        if len(set(names)) < len(names):
            raise ValueError(f"metrics have the names {names[1:]}, expected each once, and none of them loss")
        self.metrics, self.penalty = tuple(metrics), penalty
        self._rng = np.random.default_rng(seed)
        self._engine: cuda_engine.Engine | None = None  # of a model on a GPU

    def _find_gradients(self) -> None:
        """Find those of the optimizer's parameters; ValueError where it updates others than it should."""
        self._gradients = self.optimizer.structured(compiled.gradients_of(self.model, self.optimizer))

    def _check_there(self) -> None:
        """Whether a GPU knows the loss of a model that is there."""
        kind = type(self.loss)
        if self.model._queue is not None and getattr(nn, kind.__name__, None) is not kind:
            raise TypeError(f"loss is a {kind.__name__}, expected pyoptim.nn's for a model on a GPU")

    def __getstate__(self) -> dict[str, Any]:
        # In a copy, model and optimizer would no longer share their arrays.
        raise TypeError("a Trainer cannot be copied or pickled: copy the model, and make both anew on it")

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        epochs: int = 1,
        batch_size: int | None = 32,
        validation_data: tuple[Any, Any] | None = None,
        validation_split: float = 0.0,
        sample_weight: Any = None,
        shuffle: bool = True,
        callbacks: Sequence[Callback] = (),
        transform: Transform | None = None,
        weight_noise: float = 0.0,
        checkpoint: str | Path | None = None,
        checkpoint_every: float = 60.0,
        verbose: bool = True,
        engine: str = "auto",
        parallel: str | None = None,
    ) -> History:
        """Train, and leave the model in evaluation mode.

        Parameters
        ----------
        x : array (examples, ...)
            Of any real dtype; converted to the model's once, but for uint8, converted batch by batch. For a
            model on a GPU data are copied there once, or x is an array of the model's dtype or uint8 in its
            memory (CuPy's, PyTorch's, and what else has ``__cuda_array_interface__`` or speaks DLPack), which
            is taken as it is: its values are not looked at.
        y : array (examples, ...)
            Targets as the loss takes them. For a model on a GPU they, and ``sample_weight``, may be arrays in
            its memory too; they are copied to the processor once and checked as others are.
        epochs : int, default 1
        batch_size : int or None, default 32
            1 is online gradient descent, None the full batch. The last batch of an epoch may be smaller.
        validation_data : (x, y), optional
            Evaluated after each epoch.
        validation_split : float in [0, 1), default 0
            Instead hold back the last examples, this share of them, for validation.
        sample_weight : array (examples,), optional
            Numbers >= 0 that multiply each example's loss. A batch's loss is the sum divided by what it
            is divided by without them, not by the sum of the weights.
        shuffle : bool, default True
            Visit the examples in a new order each epoch; every one once.
        callbacks : sequence of `callbacks.Callback`
        transform : callable, optional
            ``(x, y, rng) -> (x, y)`` on each mini-batch: see `transforms`.
        weight_noise : float, default 0
            Take each gradient at parameters, frozen ones too, to which normal noise of this standard
            deviation was added. A function of the epoch's seed, the batch and the parameter's place
            (Philox4x32-10): the same numbers on a GPU.
        checkpoint : str or Path, optional
            Save the training to this file as it goes: model, optimizer, random state, callbacks, and the
            position in the epoch. Where the file exists the training goes on from there instead, and ends
            with the same bits as if it had never been interrupted (but for "hogwild"); ``epochs`` counts
            those before too.
        checkpoint_every : float, default 60
            Seconds from one time to the next; it is saved at the end in any case.
        verbose : bool, default True
            Show a progress bar.
        engine : {"auto", "native", "python"}
            Run epochs in the compiled engine where every part is compiled, which gives the same bits as
            the generic loop, or always, or never. A learning rate that is a function of your own, and
            none of `schedules`, is called for up to some thousand steps ahead when "native" asks for it,
            and takes the generic loop under "auto". For a model on a GPU "native" is steps that it repeats by
            itself (CUDA graphs): a step costs the host one launch.
        parallel : {None, "hogwild"}
            With None, threads share the work on each mini-batch, and results do not depend on their number.
            With "hogwild" each of `get_num_threads` threads takes mini-batches of its own, of 1 to 16
            examples, and updates the parameters and the optimizer's states without waiting for the
            others. Each batch is trained on once, with the coefficients of its place in the order. Results
            are not reproducible: they depend on which thread comes first. They converge alike (Niu et al.,
            2011). It needs what ``engine="native"`` needs, an optimizer with one state a parameter at most
            (SGD, also with momentum, Adagrad, RMSprop, Lion: the two of Adam would come apart), no
            clipping, no look for gradients that are not finite, no penalty, no weight_noise, and of layers
            Dense, Flatten, Rescale and activations alone.

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            The data do not suit the model or the loss, are empty, or are not finite; a batch would hold
            too little for BatchNorm; layers were frozen or thawed since the optimizer was made;
            ``engine="native"`` with a part that is not compiled, or
            ``parallel="hogwild"`` with what it does not take. The model is unchanged.

        Notes
        -----
        Ctrl-C ends the training after the step that runs, at most some 50 ms later, and leaves model and
        optimizer as they are then.

        The compiled engine does not fill the model's gradients: afterwards those of dense weights are
        unspecified, of the last mini-batch or 0.

        On a GPU the trainer keeps the captured steps, and the memory that they work in, but not the data.
        Another `fit` launches them at once where dtypes, the shape of an example, ``batch_size``, and whether
        there are weights and ``shuffle`` are the same.
        """
        check_count("epochs", epochs)
        if not 0 <= validation_split < 1:
            raise ValueError(f"validation_split is {validation_split!r}, expected a number in [0, 1)")
        if validation_split and validation_data is not None:
            raise ValueError("validation_split and validation_data: expected one of them at most")
        if not 0 <= weight_noise < math.inf:
            raise ValueError(f"weight_noise is {weight_noise!r}, expected a finite number >= 0")
        if not isinstance(callbacks, Sequence):
            raise TypeError(f"callbacks is a {type(callbacks).__name__}, expected a list of them")
        for i, callback in enumerate(callbacks):
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks[{i}] is a {type(callback).__name__}, expected a Callback")
        x, y, weight = self._check_data(x, y, sample_weight)
        held_back: tuple[Array, Array, Array | None] | None = None
        if validation_split:
            kept = len(x) - round(len(x) * validation_split)
            if not 0 < kept < len(x):
                raise ValueError(
                    f"validation_split is {validation_split!r}, which leaves {kept} of {len(x)} examples to "
                    "train on, expected some for each"
                )
            held_back = x[kept:], y[kept:], None if weight is None else weight[kept:]
            x, y, weight = x[:kept], y[:kept], None if weight is None else weight[:kept]
        elif validation_data is not None:
            names = "validation_data[0]", "validation_data[1]"
            held_back = self._check_data(validation_data[0], validation_data[1], names=names)
        if batch_size is None:
            batch_size = len(x)
        check_count("batch_size", batch_size)
        self._check_batches(x, min(batch_size, len(x)))
        self._find_gradients()
        history = History()
        if engine not in ("auto", "native", "python"):
            raise ValueError(f"engine is {engine!r}, expected 'auto', 'native' or 'python'")
        if parallel not in (None, "hogwild"):
            raise ValueError(f"parallel is {parallel!r}, expected None or 'hogwild'")
        hogwild = parallel == "hogwild"
        if not 0 <= checkpoint_every < math.inf:
            raise ValueError(f"checkpoint_every is {checkpoint_every!r}, expected a finite number >= 0")
        resume = None
        if checkpoint is not None:
            fixed: dict[str, Any] = {"batch_size": batch_size, "shuffle": bool(shuffle), "examples": len(x)}
            frozen = [name for name, layer in self.model.leaves().items() if not layer.trainable]
            if frozen:  # files from before there was such a thing have none
                fixed["frozen"] = frozen
            resume = Resume(checkpoint, checkpoint_every, self, fixed, callbacks)
            resume.check()
        run = _Run(
            min(batch_size, len(x)), shuffle, transform, weight_noise, callbacks, weight, resume, hogwild
        )
        history.reason = self._why_not(engine, y, run)  # what cannot be is said before anything happens
        if held_back is not None:
            held_back = self._there(*held_back)
        if transform is None:  # which works on the processor
            x, y, weight = self._there(x, y, weight)
            run = run._replace(sample_weight=weight)
        elif not isinstance(x, np.ndarray):
            raise TypeError("transform works on arrays of the processor, but x is in a GPU's memory")
        epoch = Epoch(0, self._rng.bit_generator.state)
        self.stop_training, self.resuming = False, resume is not None and resume.path.exists()
        if resume is not None and self.resuming:
            epoch, before = resume.load()
            history.update(before)
        for callback in callbacks:
            callback.trainer = self
            callback.on_train_begin()
        if resume is not None and self.resuming:
            resume.load_callbacks()
        progress = _Progress(epochs, len(x), enabled=verbose)
        progress.advance(min(epoch.index, epochs) * len(x) + epoch.done)
        try:
            while epoch.index < epochs:
                done = self.optimizer.epoch
                if epoch.done == 0:
                    for callback in callbacks:
                        callback.on_epoch_begin(done)
                # Made anew for every epoch: callbacks may have changed what it is made of.
                history.reason = self._why_not(engine, y, run)
                native: compiled.Engine | cuda_engine.Engine | None = None
                self.optimizer.check_memory()
                self._find_gradients()
                if history.reason is not None:
                    history.path = "python"
                elif self.model._queue is not None:
                    history.path, native = "cuda", self._graphs(run.batch_size)
                else:
                    history.path = "native"
                    native = compiled.Engine(
                        self.model, self.loss, self.optimizer, x.shape[1:], run.batch_size, hogwild,
                        self.penalty,
                    )  # fmt: skip
                measured = self._run_epoch(native, x, y, epoch, run, history, progress)
                self.optimizer.epoch = done + 1
                if held_back is not None:
                    results = self._evaluate(*held_back)
                    measured |= {f"val_{name}": value for name, value in results.items()}
                for name, value in measured.items():
                    history.setdefault(name, []).append(value)
                progress.end_epoch(epoch.index, measured)
                for callback in callbacks:
                    callback.on_epoch_end(done, measured)
                epoch = Epoch(epoch.index + 1, self._rng.bit_generator.state)
                if self.stop_training:
                    epoch.index = max(epochs, epoch.index)  # so that the same call does not go on
                elif resume is not None:
                    resume.save_if_due(epoch, history)
            if resume is not None:
                resume.save(epoch, history)
            for callback in callbacks:
                callback.on_train_end()
        finally:
            progress.close()
            self.model.eval()
            if self._engine is not None:
                self._engine.forget_data()
        return history

    def _graphs(self, batch_size: int) -> cuda_engine.Engine:
        """What trains on a GPU: that of before, unless it was for something else."""
        parts = self.model, self.loss, self.optimizer, batch_size
        if self._engine is None or not self._engine.is_of(*parts):
            self._engine = None  # gives its memory back first
            self._engine = cuda_engine.Engine(*parts)
        self._engine.penalty = self.penalty
        return self._engine

    def _why_not(self, engine: str, y: Array, run: _Run) -> str | None:
        """Why the engine cannot run an epoch, or None; ValueError if it was insisted on."""
        there = self.model._queue is not None
        if engine == "python":
            reason: str | None = "engine='python' was asked for"
        elif there:
            reason = cuda_engine.why_not(self.model, self.optimizer, engine == "native")
        else:
            reason = compiled.why_not(self.model, self.loss, self.optimizer, engine == "native")
        if run.transform is not None:
            reason = "transform acts on every batch"
        for i, callback in enumerate(run.callbacks):
            if callback.acts_on_batches:
                reason = f"callbacks[{i}] acts on every batch"
        if engine == "native" and reason is not None:
            raise ValueError(f"engine is 'native', but {reason}")
        if run.hogwild:
            if there:
                raise ValueError("parallel is 'hogwild', but the model is on a GPU")
            reason = reason or compiled.why_no_hogwild(self.model, self.optimizer, run.batch_size)
            if reason is None and self.penalty is not None:
                reason = f"penalty is {self.penalty!r}, expected None"
            if reason is None and run.weight_noise:
                reason = f"weight_noise is {run.weight_noise!r}, expected 0"
            if reason is not None:
                raise ValueError(f"parallel is 'hogwild', but {reason}")
        return reason

    def partial_fit(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """One step on one mini-batch, for data that come as a stream.

        Parameters
        ----------
        x, y, sample_weight
            As `fit`.

        Returns
        -------
        float
            The batch's loss before the step.

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        x, y, weight = self._check_data(x, y, sample_weight)
        self._check_batches(x, len(x))
        self._find_gradients()
        self.model.train()
        x, y, weight = self._there(x, y, weight)
        (batch,) = _batches(x, y, len(x), self.model.dtype, weight=weight)
        loss, _ = self._step(*batch)
        return loss

    def _there(self, x: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
        """Data where the model is."""
        queue = self.model._queue
        return gpu.placed(queue, x), gpu.placed(queue, y), gpu.placed(queue, weight)

    def _check_data(
        self, x: Any, y: Any, weight: Any = None, names: tuple[str, str] = ("x", "y")
    ) -> tuple[Array, Array, Array | None]:
        """Examples, targets and the weights of examples, converted to what a step takes."""
        x_name, y_name = names
        x = self.model.check_input(x_name, x, keep_bytes=True)
        if len(x) == 0:
            raise ValueError(f"{x_name} is empty, expected at least one example")
        y = gpu_data.downloaded(y_name, y, self.model._queue)
        if np.ndim(y) == 0 or len(y) != len(x):
            size = "a scalar" if np.ndim(y) == 0 else f"{len(y)} targets"
            raise ValueError(f"{y_name} has {size}, expected {len(x)}: one per example of {x_name}")
        shape = self.model.output_shape(x.shape[1:])
        y = self.loss.check_target(y_name, y, len(x), shape, self.model.dtype)
        weight = gpu_data.downloaded("sample_weight", weight, self.model._queue)
        return x, y, self.loss.check_sample_weight("sample_weight", weight, len(x), self.model.dtype)

    def _check_batches(self, x: Array, batch_size: int) -> None:
        smallest = len(x) % batch_size or batch_size
        shape = x.shape[1:]
        for layer in self.model.leaves().values():
            takes = isinstance(layer, nn.BatchNorm) and layer.takes_statistics(True)
            if takes and smallest * int(np.prod(shape[1:])) < 2:
                raise ValueError(
                    f"batch_size {batch_size} makes a batch of 1 of {len(x)} examples, "
                    f"which {layer!r} cannot take statistics of"
                )
            shape = layer.output_shape(shape)

    def _run_epoch(
        self,
        engine: compiled.Engine | cuda_engine.Engine | None,
        x: Array,
        y: Array,
        epoch: Epoch,
        run: _Run,
        history: History,
        progress: _Progress,
    ) -> dict[str, float]:
        self.model.train()
        started = time.perf_counter() - epoch.seconds
        now = self._rng.bit_generator.state
        if epoch.done > 0:  # again as when the epoch began
            self._rng.bit_generator.state = epoch.rng
        order = self._rng.permutation(len(x)) if run.shuffle else None
        noise = None
        if run.weight_noise:
            first = epoch.done // run.batch_size
            noise = WeightNoise(float(run.weight_noise), int(self._rng.integers(2**63)), first)
        if epoch.done > 0:
            self._rng.bit_generator.state = now

        def advance(examples: int) -> None:
            progress.advance(examples)
            epoch.seconds = time.perf_counter() - started
            if run.resume is not None and epoch.done < len(x):
                run.resume.save_if_due(epoch, history)

        if engine is not None:
            engine.run_epoch(x, y, run.sample_weight, order, noise, epoch, advance)
        else:
            self._python_epoch(x, y, order, noise, epoch, run, advance)
        measured = {"loss": epoch.loss / len(x)}
        if self.loss.classification:
            measured["accuracy"] = epoch.correct / len(x)
        return {**measured, "seconds": time.perf_counter() - started}

    def _python_epoch(
        self,
        x: Array,
        y: Array,
        order: Array | None,
        noise: WeightNoise | None,
        epoch: Epoch,
        run: _Run,
        advance: Callable[[int], None],
    ) -> None:
        left = _batches(x, y, run.batch_size, self.model.dtype, order, epoch.done, run.sample_weight)
        for i, (batch, target, weight) in enumerate(left, epoch.done // run.batch_size):
            for callback in run.callbacks:
                callback.on_batch_begin(i)
            if run.transform is not None:
                batch, target = self._transformed(run.transform, batch, target)
            loss, right = self._step(batch, target, weight, noise and noise._replace(step=i))
            epoch.done, epoch.loss = epoch.done + len(batch), epoch.loss + loss * len(batch)
            epoch.correct += right
            for callback in run.callbacks:
                callback.on_batch_end(i, {"loss": loss})
            advance(len(batch))

    def _transformed(self, transform: Transform, x: Array, y: Array) -> tuple[Array, Array]:
        shape = x.shape
        result = transform(x, y, self._rng)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"transform returned a {type(result).__name__}, expected (x, y)")
        x, y = result
        if not isinstance(x, np.ndarray) or x.shape != shape:
            raise ValueError(f"transform returned x of shape {np.shape(x)}, expected {shape}")
        x, y, _ = self._check_data(x, y, names=("transform's x", "transform's y"))
        return x.astype(self.model.dtype, copy=False), y

    def _step(
        self, x: Array, y: Array, weight: Array | None, noise: WeightNoise | None = None
    ) -> tuple[float, int]:
        """Train on one mini-batch; its loss, and how many were classified right."""
        model, loss = self.model, self.loss
        x, y, weight = self._there(x, y, weight)
        with noisy(model, noise):
            output = model._forward(x)
            doutput = empty_like(output)
            value = loss.evaluate(output, y, doutput, weight)
            model._backward(doutput)
            if self.penalty is not None:
                value = self.penalty._added(model, value)
        value = float(value)  # of a GPU's: waits
        right = _count_right(np.asarray(output), np.asarray(y)) if loss.classification else 0
        self.optimizer.step(self._gradients)
        return value, right

    def evaluate(self, x: Any, y: Any, sample_weight: Any = None) -> dict[str, float]:
        """The loss, for classification the accuracy, and the trainer's metrics, in evaluation mode.

        ``sample_weight`` is as in `fit`, and concerns the loss alone.

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        x, y, weight = self._check_data(x, y, sample_weight)
        return self._evaluate(x, y, weight)

    def _evaluate(self, x: Array, y: Array, sample_weight: Array | None) -> dict[str, float]:
        self.model.eval()
        self._check_there()
        queue, classification = self.model._queue, self.loss.classification
        there = None if queue is None else cuda_engine.Sums(queue, classification)
        total_loss, correct = 0.0, 0
        outputs = []
        size = self._evaluation_batch(x)
        x, y, sample_weight = self._there(x, y, sample_weight)
        for batch, target, weight in _batches(x, y, size, self.model.dtype, weight=sample_weight):
            output = self.model._forward(batch)
            if self.metrics:
                outputs.append(np.array(output))
            loss: Any = self.loss.evaluate(output, target, None, weight)
            if there is not None:
                there.add(output, target, loss)
                continue
            total_loss += loss * len(batch)
            if classification:
                correct += _count_right(output, target)
        if there is not None:
            sums = there.read()
            total_loss, correct = float(sums["loss"]), int(sums["right"])
        measured = {"loss": total_loss / len(x)}
        if classification:
            measured["accuracy"] = correct / len(x)
        for metric in self.metrics:
            measured[_metric_name(metric)] = float(metric(np.asarray(y), np.concatenate(outputs)))
        return measured

    def predict(self, x: Any) -> Array:
        """The model's outputs, in evaluation mode: for classification logits, not probabilities.

        Returns
        -------
        array (examples, *outputs)
            In a GPU's memory where x is.
        """
        x = self.model.check_input("x", x, keep_bytes=True)
        self.model.eval()
        shape = (len(x), *self.model.output_shape(x.shape[1:]))
        size = self._evaluation_batch(x)
        if not isinstance(x, np.ndarray):
            results: Any = gpu.empty(x.queue, shape, self.model.dtype)
            for i, (batch,) in enumerate(cuda_engine.batches((x,), size, self.model.dtype)):
                results[i * size : (i + 1) * size][...] = self.model._forward(batch)
            gpu_data.release(x)
            return results  # type: ignore[no-any-return]
        outputs = np.empty(shape, self.model.dtype)
        for begin in range(0, len(x), size):
            batch = x[begin : begin + size].astype(self.model.dtype, copy=False)
            outputs[begin : begin + size] = self.model._forward(gpu.placed(self.model._queue, batch))
        return outputs

    def _evaluation_batch(self, x: Array) -> int:
        """All examples at once where a layer takes statistics of what it evaluates."""
        takes = any(
            isinstance(layer, nn.BatchNorm) and layer.takes_statistics(False)
            for layer in self.model.leaves().values()
        )
        return max(len(x), 1) if takes else _EVALUATION_BATCH


def _metric_name(metric: Any) -> str:
    return str(getattr(metric, "__name__", type(metric).__name__))


class _Run(NamedTuple):
    """How `fit` goes through the examples."""

    batch_size: int
    shuffle: bool
    transform: Transform | None
    weight_noise: float
    callbacks: Sequence[Callback]
    sample_weight: Array | None
    resume: Resume | None
    hogwild: bool


def _batches(
    x: Array,
    y: Array,
    batch_size: int,
    dtype: np.dtype[Any],
    order: Array | None = None,
    first: int = 0,
    weight: Array | None = None,
) -> Iterator[tuple[Array, Array, Array | None]]:
    if not isinstance(x, np.ndarray):
        yield from cuda_engine.batches((x, y, weight), batch_size, dtype, order, first)
        return
    arrays = (x, y) if weight is None else (x, y, weight)
    for begin in range(first, len(x), batch_size):
        chosen = slice(begin, begin + batch_size)
        if order is None:
            batch, target, *rest = (a[chosen] for a in arrays)
        else:
            batch, target, *rest = (a.take(order[chosen], axis=0) for a in arrays)
        yield batch.astype(dtype, copy=False), target, rest[0] if rest else None


def _count_right(output: Array, target: Array) -> int:
    """Where the largest output is that of the label, or that with the largest share."""
    labels = target if target.ndim == 1 else target.argmax(axis=1)
    return int(np.count_nonzero(output.argmax(axis=1) == labels))


class _Progress:
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
