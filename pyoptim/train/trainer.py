"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import metrics as public_metrics
from .. import nn
from ..arrays.memory import affine, empty_like
from ..backends.places import count_right
from ..callbacks import Callback, tell_the_end
from ..optim.optimizer import Optimizer
from ..optim.stepping import change_rules, check_descends
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, check_flag, check_seed, nearest, shown
from ..transforms import Transform
from . import cuda_engine, curves, evaluation
from . import engine as compiled
from .asynchronous import Asynchronous, Loose
from .data import Data, check_batches, checked
from .engine import Advance, is_of_user
from .history import History
from .nccl import GpuExchange
from .preparing import Options, Run, hold_back, prepare, source_of
from .progress import Progress
from .ranks import ALONE, Exchange, Ranks
from .resume import Epoch
from .sources import Blocks, Source, check_shuffle
from .weight_noise import WeightNoise, noisy


class _Path(NamedTuple):
    """What runs epochs: its name and reason are those of `History`; without an engine, the generic loop."""

    name: str
    reason: str | None
    engine: compiled.Engine | cuda_engine.Engine | None


class _Step(NamedTuple):
    """What a step on a mini-batch measured."""

    loss: float  # the mean
    divisor: float  # what the sum of the losses was divided by for it
    right: int  # how many examples were classified right
    taken: bool  # whether the optimizer took the step, and did not skip it


def _metric(i: int, metric: Any) -> Callable[..., float]:
    """Return the metric that a user names, or gives."""
    if isinstance(metric, str):
        try:
            return public_metrics.named(metric)
        except ValueError as error:
            expected = str(error).partition("expected ")[2]
            raise ValueError(f"metrics[{i}] is {shown(metric)}, expected a function or {expected}") from None
    if not callable(metric):
        raise TypeError(f"metrics[{i}] is {shown(metric)}, expected a function of targets and outputs")
    return metric  # type: ignore[no-any-return]


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
        Seed of the order in which examples are visited.
    metrics : sequence of str or callable
        What `evaluate` and validation measure too: names such as "f1" (`metrics.NAMES`), or functions
        ``(targets, outputs) -> number``. Those of `metrics` are weighted by the examples' weights where there
        are some, also "accuracy", if it is named here.
    penalty : nn.Penalty, optional
        Added to the loss and its gradient in training, not in evaluation.
    sharpness_aware : float, default 0
        The radius rho of sharpness-aware minimisation (SAM, Foret et al. 2021, who take 0.05), for minima
        that are flat. Each step is made by the gradient at ``p + rho*g/norm(g)``, where g is that of the
        mini-batch at p, with the penalty: so a step takes two gradients. As in the authors' code the
        running statistics of `BatchNorm` are taken at p alone, and both passes have the same masks and noise.
        The loss and the accuracy of the `History` are those at p. For ASAM see `Optimizer.ascended`.
    comm : communicator of mpi4py, optional
        The processes that train this model together, MPI's ranks, such as `distributed.world` returns: all
        make the same trainer, and call `fit` at the same time with their own examples (or ``shard=True``).
        Each computes the gradients of its part of a batch, one message sums them up, and all take the same
        step: parameters have the same bits on all ranks, and those of one process up to the order of sums.
        The first rank's parameters and random state are everyone's. Layers that are random draw other numbers
        on each rank. Models may be on GPUs, one for each rank: NCCL, through CuPy, then sums up their
        gradients. `evaluate` and `predict` are a rank's own business. A rank that fails prints its error and
        ends all. With `distributed.ElasticAveraging` or `distributed.ParameterServer` in its place ranks take
        steps of their own, and do not wait for each other.
    sync_norms : bool, default False
        With ``comm``: whether `BatchNorm` takes statistics of the whole batch, as one process does, by three
        more messages a step and layer, and the loop in Python. Else it takes those of a rank's part, and
        ranks average what they keep of them after each epoch.

    Notes
    -----
    A copy (`copy.deepcopy`, `pickle`) trains a model of its own with an optimizer of its own, from where this
    one stands, to the same bits. On a GPU there are no copies.

    Examples
    --------
    >>> trainer = Trainer(model, nn.CrossEntropy(), Adam(model.parameters()), seed=0)
    >>> history = trainer.fit(x, y, epochs=5, batch_size=32)
    >>> trainer.evaluate(x_test, y_test)["accuracy"]

    For a flat minimum, at two gradients a step.

    >>> trainer = Trainer(model, nn.CrossEntropy(), SGD(model.parameters(), lr=0.1), sharpness_aware=0.05)
    """

    _sharpness_aware = 0.0  # of trainers that an earlier version pickled
    _ranks = ALONE  # likewise
    _sync_norms = False  # likewise
    _exchange: Exchange | GpuExchange | None = None  # while several ranks train

    def __init__(
        self,
        model: nn.Sequential,
        loss: nn.Loss,
        optimizer: Optimizer,
        *,
        seed: int | None = None,
        metrics: Sequence[str | Callable[..., float]] = (),
        penalty: nn.Penalty | None = None,
        sharpness_aware: float = 0.0,
        comm: Any = None,
        sync_norms: bool = False,
    ) -> None:
        if not isinstance(model, nn.Sequential):
            raise TypeError(f"model is a {type(model).__name__}, expected a Sequential")
        if not isinstance(loss, nn.Loss):
            near = nearest(loss, nn.losses.__all__)
            raise TypeError(f"loss is a {type(loss).__name__}, expected a Loss, e.g. CrossEntropy(){near}")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}, expected an Optimizer, such as Adam")
        if penalty is not None and not isinstance(penalty, nn.Penalty):
            raise TypeError(f"penalty is a {type(penalty).__name__}, expected a Penalty or None")
        if not isinstance(metrics, Sequence) or isinstance(metrics, str):
            raise TypeError(f"metrics is {shown(metrics)}, expected a sequence of functions")
        self._rng = check_seed("seed", seed)
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self._find_gradients()
        self._check_loss()
        self.stop_training = False  # what a callback sets
        self.resuming = False  # from a checkpoint
        self.interrupted = False  # whether an exception ended the last training
        functions = tuple(_metric(i, metric) for i, metric in enumerate(metrics))
        names = ["loss", *map(evaluation.name_of, functions)]
        if len(set(names)) < len(names):
            raise ValueError(f"metrics have the names {names[1:]}, expected each once, and none of them loss")
        self.metrics, self.penalty = functions, penalty
        self._ranks = Loose(comm) if isinstance(comm, Asynchronous) else Ranks(comm)
        if check_flag("sync_norms", sync_norms) and not self._ranks.together:
            raise ValueError(
                "sync_norms is True, expected False: each rank has batches of its own with "
                f"{type(comm).__name__}"
            )
        self._sync_norms = sync_norms and self._ranks.size > 1
        self.sharpness_aware = sharpness_aware
        self._engine: cuda_engine.Engine | None = None  # kept from fit to fit for a model on a GPU

    @property
    def sharpness_aware(self) -> float:
        """The distance rho at which each step takes its gradient, or 0: see the parameter of this name."""
        return self._sharpness_aware

    @sharpness_aware.setter
    def sharpness_aware(self, rho: float) -> None:
        self._sharpness_aware = AT_LEAST_ZERO.number("sharpness_aware", rho)

    def _find_gradients(self) -> None:
        """Find the optimizer's gradients; ValueError if it does not update exactly what the model trains."""
        self._gradients = self.optimizer.structured(compiled.gradients_of(self.model, self.optimizer))

    def _check_loss(self) -> None:
        """Raise TypeError if the model is on a GPU and the loss, not being pyoptim.nn's, has no kernel."""
        kind = type(self.loss)
        if not self.model._place.runs_python and getattr(nn, kind.__name__, None) is not kind:
            raise TypeError(f"loss is a {kind.__name__}, expected pyoptim.nn's for a model on a GPU")

    def __getstate__(self) -> dict[str, Any]:
        # The optimizer of a copy updates the copy's model; training finds its gradients anew.
        return {**self.__dict__, "_gradients": None, "_engine": None, "_exchange": None}

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        batch_size: int | None = 32,
        validation_data: Any = None,
        validation_split: float = 0.0,
        sample_weight: Any = None,
        shuffle: bool | int = True,
        steps_per_epoch: int | None = None,
        drop_last: bool = False,
        callbacks: Sequence[Callback] = (),
        transform: Transform | None = None,
        weight_noise: float = 0.0,
        checkpoint: str | Path | None = None,
        checkpoint_every: float = 60.0,
        verbose: bool | int = True,
        engine: str = "auto",
        parallel: str | None = None,
        shard: bool = False,
    ) -> History:
        """Train, and leave the model in evaluation mode.

        Parameters
        ----------
        x : array (examples, ...), or blocks
            Of any real dtype, or a frame of pandas or polars whose columns are numbers or bools; converted to
            the model's dtype once, but for uint8, converted batch by batch. A `numpy.memmap` of more than 256
            MB is read, checked and converted some thousand rows at a time; they come in the same order
            (memory holds it, 4 bytes an example), and the result has the same bits, as if it were in memory.
            For a model on a GPU other data are copied to it once, or x is an array of the model's dtype or
            uint8 in its memory (CuPy's, PyTorch's, and what else has ``__cuda_array_interface__`` or speaks
            DLPack), which is taken as it is: its values are not looked at.
            Without y, a function that returns an iterable of blocks ``(x, y)`` or ``(x, y, weight)``, called
            for each epoch, or such an iterable, such as a list or PyTorch's ``DataLoader``; a generator
            serves one epoch. All blocks have the dtypes and the shape of an example of the first, and any
            number of examples. A thread fetches the next block while one is trained on. Examples that fill no
            whole batch are trained on with those of the next block, so that how they are cut into blocks
            changes nothing. See `blocks` for those in files.
        y : array (examples, ...), optional
            Targets as the loss takes them. For a model on a GPU they, and ``sample_weight``, may be arrays in
            its memory too; they are copied to the processor once and checked as others are. Labels may be
            of any integer dtype or bool. Those that change while `fit` runs are checked again by each step;
            one that is no class is a ValueError before that step.
        epochs : int, default 1
        batch_size : int or None, default 32
            1 is online gradient descent, None the full batch. The last batch of an epoch may be smaller.
            Where there are fewer examples, they are one batch. With ``comm`` it is of all ranks together:
            each has an equal part of it.
        validation_data : (x, y) or blocks, optional
            Evaluated after each epoch; or a function of blocks, as ``x``.
        validation_split : float in [0, 1), default 0
            Instead hold back the last examples, this share of them, for validation.
        sample_weight : array (examples,), optional
            Numbers >= 0 that multiply each example's loss. A batch's loss is the sum divided by what it
            is divided by without them, not by the sum of the weights.
        shuffle : bool or int, default True
            Visit the examples in a new order each epoch; every one once. True mixes blocks each in itself.
            For blocks and mapped files a number above 1 is the size of a buffer of examples, of which each is
            drawn at random and replaced by the next that comes: at least one in which similar examples come
            apart. A file is then read from its begin to its end, which is quick on every disk.
        steps_per_epoch : int, optional
            Of blocks: end an epoch after so many batches. Fewer are a ValueError, raised after them.
        drop_last : bool, default False
            Leave out the last batch of an epoch where it is smaller than ``batch_size``: with ``shuffle``
            other examples each time.
        callbacks : sequence of `callbacks.Callback`
        transform : callable, optional
            ``(x, y, rng) -> (x, y)`` on each mini-batch: see `transforms`.
        weight_noise : float, default 0
            Take each gradient at parameters, frozen ones too, to which normal noise of this standard
            deviation was added. A function of the epoch's seed, the batch and the parameter's place
            (Philox4x32-10): the same numbers on a GPU.
        checkpoint : str or Path, optional
            Save the training to this file as it goes: model, optimizer, random state, callbacks, and the
            position in the epoch, to which blocks are read again: where they are shuffled, they have to be
            cut as before. Where the file exists the training goes on
            from there instead, and ends with the same bits as if it had never been interrupted (but for
            "hogwild"); ``epochs`` counts those before too.
        checkpoint_every : float, default 60
            Seconds from one time to the next; it is saved at the end in any case.
        verbose : bool or {0, 1, 2}, default True
            True or 1 shows a progress bar, also in notebooks; False or 0 shows nothing. 2 writes a line for
            each epoch through `logging`, to the logger "pyoptim" at the level INFO: to standard error where
            the program has not set up logging, else to where ``logging.basicConfig(level="INFO")`` and the
            like send it.
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
            clipping, no look for gradients that are not finite, no penalty, weight_noise or
            sharpness_aware, and layers that keep nothing but parameters: no BatchNorm, Dropout or
            GaussianNoise.
        shard : bool, default False
            With ``comm``: all ranks give the same data, and each trains on its part of every batch, so that
            batches are those of one process; validation data are divided too. Without it each rank gives
            examples of its own, of which each batch gets the same share: a rank with few examples has none in
            some steps, and one may have none at all (arrays of length 0). Blocks are a rank's own, and need
            ``steps_per_epoch``; of each batch it takes an equal part from them.

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            The data do not suit the model or the loss, are empty, or are not finite; of blocks and mapped
            files this is found when it is their turn, after the steps before; the error names the block or
            the row. A batch would hold too little for BatchNorm; layers were frozen or thawed since the
            optimizer was made; a metric of `pyoptim.metrics` does not suit the validation data;
            ``engine="native"`` with a part that is not compiled, or ``parallel="hogwild"`` with what it does
            not take. The model is unchanged.
        RuntimeError
            A block did not come: what was raised instead is the cause. Model and optimizer are as after the
            last step.

        Notes
        -----
        Ctrl-C ends the training after the step that runs, at most some 50 ms later, and leaves model and
        optimizer as they are then. Like any exception, it is raised after the callbacks were told of the end.

        The compiled engine does not fill the model's gradients: afterwards those of dense weights are
        unspecified, of the last mini-batch or 0. After an exception they may also lack the penalty.

        On a GPU the trainer keeps the captured steps, and the memory that they work in, but not the data.
        Another `fit` launches them at once where dtypes, the shape of an example, ``batch_size``, and whether
        there are weights and ``shuffle`` are the same.
        """
        with self._ranks.guarded():
            source = source_of(self, x, y, sample_weight)
            options = Options(
                epochs=epochs, batch_size=batch_size, shuffle=check_shuffle(shuffle, source),
                drop_last=check_flag("drop_last", drop_last), callbacks=callbacks,
                transform=transform, weight_noise=weight_noise, verbose=verbose, engine=engine,
                parallel=parallel, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
                steps_per_epoch=steps_per_epoch, shard=check_flag("shard", shard),
            )  # fmt: skip
            source, held_back = hold_back(self, source, validation_data, validation_split)
            run = prepare(self, source, held_back, options)
            history = History()
            how = f"{curves.of_optimizer(self.optimizer)}, batches of {run.whole_batch:,}"
            history.about = curves.describe(self.model, how)
            history.reason = self._why_not(run)  # what cannot be is said before anything happens
            self._run(run.placed(self.model._place), history)
            self._ranks.end_alike(self.model)
        return history

    def _run(self, run: Run, history: History) -> None:
        """Go through the epochs, and fill the history."""
        options, resume = run.options, run.resume
        examples, path = run.examples, None
        begun: list[Callback] = []
        with ExitStack() as at_the_end:  # what was entered last is called first
            at_the_end.callback(self._leave)
            at_the_end.callback(tell_the_end, begun)
            epoch = self._begin(run, history, begun)
            progress = Progress(options.verbose, "epoch", options.epochs, "examples", examples)
            at_the_end.callback(progress.close)
            progress.advance(min(epoch.index, options.epochs) * (examples or 0) + epoch.position)
            while epoch.index < options.epochs:
                path = self._run_epoch(run, epoch, path, history, progress)
                self.stop_training = self._ranks.any(self.stop_training)
                epoch = Epoch(epoch.index + 1, self._rng.bit_generator.state)
                if self.stop_training:
                    epoch.index = max(
                        options.epochs, epoch.index
                    )  # so that the same call, with this checkpoint, ends at once
                elif resume is not None:
                    resume.save_if_due(epoch, history)
            self._ranks.finish(self.model)
            if resume is not None:
                resume.save(epoch, history)
            self.interrupted = False

    def _leave(self) -> None:
        self.model.eval()
        self._exchange = None
        if self._engine is not None:
            self._engine.forget_data()

    def _begin(self, run: Run, history: History, begun: list[Callback]) -> Epoch:
        """Tell the callbacks, and return the epoch to begin with: the first, or that of a checkpoint.

        ``begun`` receives the callbacks as they are told.
        """
        ranks, resume = self._ranks, run.resume
        self._rng.bit_generator.state = ranks.share(self._rng.bit_generator.state)
        epoch = Epoch(0, self._rng.bit_generator.state)
        self.interrupted = True  # until the training is over
        self.stop_training = False
        if resume is not None and self.resuming:
            epoch, before = resume.load()
            history.update(before)
        ranks.begin_alike(self.model, self.optimizer)
        for callback in run.options.callbacks:
            callback.trainer = self
            callback.on_train_begin()
            begun.append(callback)
        if resume is not None and self.resuming:
            resume.load_callbacks()
        return epoch

    def _run_epoch(
        self, run: Run, epoch: Epoch, path: _Path | None, history: History, progress: Progress
    ) -> _Path | None:
        """Run the rest of an epoch, with its callbacks and its validation, on the path of the last one."""
        done, callbacks = self.optimizer.epoch, run.options.callbacks
        if epoch.position == 0:
            for callback in callbacks:
                callback.on_epoch_begin(done)
        of_user = [
            *callbacks,
            *self.metrics,
            *filter(is_of_user, (g["lr"] for g in self.optimizer.param_groups)),
        ]
        if path is None or path.engine is None or of_user:  # functions may have changed its parts
            path = None
        measured, path = self._train_epoch(path, run, epoch, history, progress)
        self._ranks.check_same_bits(self.model)
        self.optimizer.epoch = done + 1
        with self._ranks.centred(self.model):
            if run.held_back is not None:
                results = self._validate(run.held_back)
                measured |= {f"val_{name}": value for name, value in results.items()}
            for name, value in measured.items():
                history.setdefault(name, []).append(value)
            progress.end(epoch.index + 1, measured)
            for callback in callbacks:
                callback.on_epoch_end(done, measured)
        return path

    def _new_path(self, run: Run, shape: tuple[int, ...]) -> _Path:
        """Choose what trains the model, loss and optimizer as they are now on examples of this shape."""
        change_rules(self.optimizer)
        reason = self._why_not(run)
        self.optimizer.check_memory()
        self._find_gradients()
        self._exchange = self._ranks.exchange(self.model.flat_gradients)
        if reason is not None:
            return _Path("python", reason, None)
        if self.model._place.queue is not None:
            return _Path("cuda", None, self._graphs(run.batch_size))
        hogwild = run.options.parallel == "hogwild"
        engine = compiled.Engine(
            self.model, self.loss, self.optimizer, shape, run.batch_size, hogwild,
            self.penalty, sharpness_aware=self.sharpness_aware, exchange=self._exchange,
        )  # fmt: skip
        return _Path("native", None, engine)

    def _graphs(self, batch_size: int) -> cuda_engine.Engine:
        """Return the engine for a GPU: the last one if it was made of the same parts, else a new one."""
        parts = self.model, self.loss, self.optimizer, batch_size
        if self._engine is None or not self._engine.is_of(*parts):
            self._engine = None  # gives its memory back first
            self._engine = cuda_engine.Engine(*parts)
        self._engine.penalty, self._engine.sharpness_aware = self.penalty, self.sharpness_aware
        return self._engine

    def _why_not(self, run: Run) -> str | None:
        """Return why no engine can run an epoch, or None; ValueError if ``engine="native"`` wants one."""
        options, on_gpu = run.options, self.model._place.queue is not None
        if self.sharpness_aware:
            check_descends(self.optimizer, "sharpness_aware")
        insists = options.engine == "native"
        if options.engine == "python":
            reason: str | None = "engine='python' was asked for"
        elif on_gpu and self._ranks.size > 1:
            reason = "GPUs exchange gradients in each step"
        elif on_gpu:
            reason = cuda_engine.why_not(self.model, self.optimizer, insists)
        else:
            reason = compiled.why_not(self.model, self.loss, self.optimizer, insists)
        if self._sync_norms and any(
            isinstance(layer, nn.BatchNorm) for layer in self.model.leaves().values()
        ):
            reason = "BatchNorm takes statistics over all ranks"
        if options.transform is not None:
            reason = "transform acts on every batch"
        for i, callback in enumerate(options.callbacks):
            if callback.acts_on_batches:
                reason = f"callbacks[{i}] acts on every batch"
        if insists and reason is not None:
            raise ValueError(f"engine is 'native', but {reason}")
        if options.parallel == "hogwild":
            if on_gpu:
                raise ValueError("parallel is 'hogwild', but the model is on a GPU")
            reason = reason or compiled.why_no_hogwild(self.model, self.optimizer, run.batch_size)
            if reason is None and self.penalty is not None:
                reason = f"penalty is {self.penalty!r}, expected None"
            if reason is None and options.weight_noise:
                reason = f"weight_noise is {options.weight_noise!r}, expected 0"
            if reason is None and self.sharpness_aware:
                reason = f"sharpness_aware is {self.sharpness_aware!r}, expected 0"
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
        if self._ranks.size > 1:
            raise ValueError(
                f"partial_fit: not with a comm of {self._ranks.size} ranks, only with one process"
            )
        data = self._check_data(x, y, sample_weight)
        check_batches(self.model, data.x, len(data.x))
        self._find_gradients()
        self.model.train()
        (batch,) = data.at(self.model._place).batches(len(data.x), self.model.dtype)
        return self._step(batch).loss

    def _check_data(self, x: Any, y: Any, weight: Any = None, names: tuple[str, str] = ("x", "y")) -> Data:
        return checked(self.model, self.loss, x, y, weight, names, may_be_empty=self._ranks.shares_batches)

    def _train_epoch(
        self, path: _Path | None, run: Run, epoch: Epoch, history: History, progress: Progress
    ) -> tuple[dict[str, float], _Path | None]:
        """Train on the rest of the epoch's examples; return the measurements, and what it was trained by."""
        self.model.train()
        ranks = self._ranks
        started = time.perf_counter() - epoch.seconds
        drawn, noise = self._draw(run, epoch)

        def advance(more: int) -> None:
            progress.advance(more)
            ranks.after(-(-more // run.batch_size))
            epoch.seconds = time.perf_counter() - started
            if run.resume is None or ranks.size > 1:  # ranks have numbers of their own within an epoch
                return
            unfinished = run.examples is None or epoch.position < run.examples
            if unfinished and epoch.position % run.batch_size == 0:
                run.resume.save_if_due(epoch, history)

        with ExitStack() as stack:
            stack.enter_context(ranks.own_noise(self.model))
            if self._sync_norms:
                stack.enter_context(ranks.common_statistics(self.model))
            pieces = stack.enter_context(closing(run.source.pieces(drawn, epoch, run.batch_size)))
            for data, order in pieces:
                if isinstance(run.source, Blocks):
                    check_batches(self.model, data.x, run.batch_size)
                if path is None:  # now the shape of an example is known
                    path = self._new_path(run, data.x.shape[1:])
                    history.path, history.reason = path.name, path.reason
                noise = noise and noise._replace(step=epoch.position // run.batch_size)
                placed = data.at(self.model._place)
                if isinstance(path.engine, compiled.Engine):
                    path.engine.run_epoch(placed, order, noise, epoch, advance, run.ends, ranks.pace)
                elif path.engine is not None:
                    path.engine.run_epoch(placed, order, noise, epoch, advance)
                else:
                    self._python_epoch(run, data, order, noise, epoch, advance)
        ranks.end_epoch(self.model, epoch)
        seconds = time.perf_counter() - started
        measured = epoch.measured(self.loss.classification)
        return {**measured, "seconds": ranks.share(seconds) if ranks.together else seconds}, path

    def _draw(self, run: Run, epoch: Epoch) -> tuple[Any, WeightNoise | None]:
        """Draw the order of the examples in an epoch, and the noise on the weights."""
        now = self._rng.bit_generator.state
        if epoch.position > 0:  # a resumed epoch draws the same numbers again
            self._rng.bit_generator.state = epoch.rng
        drawn = (
            run.source.draw(self._rng, run.options.shuffle, run.examples)
            if self._ranks.size == 1
            else self._ranks.order(self._rng, run.source.examples or 0, run)
        )
        noise = None
        if run.options.weight_noise:
            noise = WeightNoise(float(run.options.weight_noise), int(self._rng.integers(2**63)), 0)
        if epoch.position > 0:
            self._rng.bit_generator.state = now
        return drawn, noise

    def _python_epoch(
        self,
        run: Run,
        data: Data,
        order: Array | None,
        noise: WeightNoise | None,
        epoch: Epoch,
        advance: Advance,
    ) -> None:
        size = run.batch_size if run.ends is None else run.ends
        left = data.batches(size, self.model.dtype, order, epoch.done)
        buffers = self._buffers()
        for i, batch in enumerate(left, epoch.position // run.batch_size):
            for callback in run.options.callbacks:
                callback.on_batch_begin(i)
            if run.options.transform is not None:
                batch = self._transformed(run.options.transform, batch)
            step = self._step(batch, noise and noise._replace(step=i), buffers)
            size = len(batch.x)
            epoch.done += size
            if step.taken:
                epoch.loss += step.loss * step.divisor
                epoch.divisor += step.divisor
                epoch.correct += step.right
                epoch.counted += size
            for callback in run.options.callbacks:
                callback.on_batch_end(i, {"loss": step.loss})
            advance(size)

    def _transformed(self, transform: Transform, batch: Data) -> Data:
        shape = batch.x.shape
        result = transform(batch.x, batch.y, self._rng)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"transform returned a {type(result).__name__}, expected (x, y)")
        x, y = result
        if not isinstance(x, np.ndarray) or x.shape != shape:
            raise ValueError(f"transform returned x of shape {np.shape(x)}, expected {shape}")
        names = "transform's x", "transform's y"
        x, y, _ = checked(self.model, self.loss._of_checked, x, y, names=names)
        return Data(x.astype(self.model.dtype, copy=False), y, batch.weight)

    def _step(self, batch: Data, noise: WeightNoise | None = None, buffers: list[Any] | None = None) -> _Step:
        """Train on one mini-batch; a step that is not taken or fails leaves the model as it was.

        ``buffers`` are those of `_buffers`, which a caller of many steps looks up once.
        """
        model, loss, optimizer, rho = self.model, self.loss, self.optimizer, self.sharpness_aware
        x, y, weight = batch.at(model._place)
        buffers = self._buffers() if buffers is None else buffers
        before = [buffer.copy() for buffer in buffers]
        skipped, taken = optimizer.skipped, False
        try:
            with noisy(model, noise):
                output, value = self._backpropagated(x, y, weight)
                value = float(value)  # the host waits for a loss on the GPU
                if rho:
                    after = [buffer.copy() for buffer in buffers]
                    _write(buffers, before)  # so that Dropout draws the same masks again
                    with optimizer.ascended(self._gradients, rho):
                        self._backpropagated(x, y, weight)
                    _write(buffers, after)
            divisor = float(loss.divisor(output, y)) if len(x) else 0.0
            counts = loss.classification and len(x)
            right = count_right(np.asarray(output), np.asarray(y)) if counts else 0
            optimizer.step(self._gradients)
            if model._kept is not None:
                model._hold()
            taken = optimizer.skipped == skipped
        finally:
            if not taken:
                _write(buffers, before)
        return _Step(value, divisor, right, taken)

    def _buffers(self) -> list[Any]:
        """Return what a step changes beside parameters, and has to put back where it is not taken."""
        needed = self.optimizer.nonfinite != "ignore" or self.sharpness_aware
        if not needed and not self.model._place.runs_python:
            return []  # labels on a GPU were checked before, and each copy there is a launch
        return list(self.model._named("buffers").values())

    def _backpropagated(self, x: Array, y: Array, weight: Array | None) -> tuple[Array, Any]:
        """Return output and loss of a batch, with the penalty; the model's gradients are theirs."""
        output: Any = None
        value: Any = 0.0
        divisor = 0.0
        if len(x):  # else only other ranks have examples of this batch
            output = self.model._forward(x)
            gradient = empty_like(output)
            value = self.loss.evaluate(output, y, gradient, weight)
            if self._exchange is not None:
                divisor = float(self.loss.divisor(output, y))
                if divisor:
                    gradient = affine(gradient, divisor)
                else:
                    gradient[...] = 0
            self.model._backward(gradient)
        else:
            if self._sync_norms:  # others wait for the statistics of this part
                self.model._backward(self.model._forward(x))
            self.model.flat_gradients[...] = 0
        if self._exchange is not None:
            value = self._exchange(float(value), divisor)
        if self.penalty is not None:
            value = self.penalty._added(self.model, value)
        return output, value

    def evaluate(self, x: Any, y: Any = None, sample_weight: Any = None) -> dict[str, float]:
        """The loss, for classification the accuracy, and the trainer's metrics, in evaluation mode.

        All are of the data as a whole, whatever its batches or blocks: the loss is that of one large batch.
        The accuracy is the share of examples whose largest output is that of the label (or of the largest
        share); one whose largest output is NaN or infinite is never right.

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        return self._evaluate(source_of(self, x, y, sample_weight))

    def _evaluate(self, data: Data | Source) -> dict[str, float]:
        self._check_loss()
        return evaluation.evaluate(self.model, self.loss, self.metrics, data)

    def _validate(self, data: Source) -> dict[str, float]:
        if not self._ranks.shares_batches:
            return self._evaluate(data)
        return evaluation.evaluate(self.model, self.loss, self.metrics, data, self._ranks)

    def predict(self, x: Any, *, fold: bool = False) -> Array:
        """The model's outputs, in evaluation mode: for classification logits, not probabilities.

        Parameters
        ----------
        x : array (examples, ...)
            As `fit`.
        fold : bool, default False
            Predict with ``model.folded()``, in which `Dense` layers have taken over the `BatchNorm` after
            them; that says how far outputs differ. It is made anew in each call: for many small ones, make it
            once.

        Returns
        -------
        array (examples, *outputs)
            In a GPU's memory where x is.
        """
        outputs = evaluation.predict(self.model.folded() if check_flag("fold", fold) else self.model, x)
        self.model.eval()
        return outputs


def _write(buffers: Sequence[Any], values: Sequence[Any]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer[...] = value
