"""
Compiled kernels of pyoptim. Private: pyoptim.backends.native is the door.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['AdafactorStepper', 'Engine32', 'Engine64', 'MuonStepper', 'PackedStepper', 'Predictor32', 'Predictor64', 'Stepper', 'TensorGradients', 'TrustStepper', 'activation_backward', 'activation_forward', 'activation_kinds', 'any_outside', 'common_coefficients', 'compiled_kinds', 'dense_backward', 'dense_forward', 'divide_grains', 'dropout', 'exponential', 'fitting', 'gaussian_noise', 'get_num_threads', 'has_state_layouts', 'instruction_set', 'instruction_sets', 'kl_divergence', 'label_weights', 'layer_norm_backward', 'layer_norm_forward', 'most_parts', 'most_threads', 'multiply_add', 'next_coefficients', 'norm', 'norm_backward', 'norm_forward', 'optimizer_options', 'penalty', 'philox', 'pointwise_loss', 'processor_quota', 'quantized_dense', 'rules', 'set_num_threads', 'softmax_backward', 'softmax_cross_entropy', 'softmax_forward', 'state_layouts', 'stream_update', 'tensor_gradients', 'tensor_layouts', 'use_instruction_set']
class Stepper:
    def __init__(self, groups: collections.abc.Sequence[tuple[str, collections.abc.Sequence[numpy.ndarray], collections.abc.Sequence[collections.abc.Sequence[numpy.ndarray]]]], averages: collections.abc.Sequence[numpy.ndarray]) -> None:
        ...
    def advance(self, grads: list[typing.Any], groups: typing.Any, scalars: list[dict[str, typing.Any]], epoch: typing.Any) -> bool:
        ...
    def hold(self, name: str, groups: collections.abc.Sequence[dict[str, typing.Any]], rate: typing.Any, chosen: typing.Any, ours: collections.abc.Sequence[typing.Any]) -> None:
        ...
    def norm(self, grads: list[typing.Any]) -> float | None:
        ...
    def step(self, grads: list[typing.Any], coefficients: list[tuple[float, ...]], weight: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> bool:
        ...
class PackedStepper:
    def __init__(self, rules: collections.abc.Sequence[str], entries: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, tuple[str, numpy.ndarray, typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None], typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, collections.abc.Sequence[tuple[str, numpy.ndarray, typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None]]]]) -> None:
        ...
    def norm(self, grads: list[typing.Any]) -> float | None:
        ...
    def step(self, grads: list[typing.Any], coefficients: list[tuple[float, ...]], key: typing.SupportsInt | typing.SupportsIndex, stochastic: bool) -> bool:
        ...
class TrustStepper:
    def __init__(self, groups: collections.abc.Sequence[tuple[str, collections.abc.Sequence[numpy.ndarray], collections.abc.Sequence[collections.abc.Sequence[numpy.ndarray]]]], directed: bool) -> None:
        ...
    def norm(self, grads: list[typing.Any]) -> float | None:
        ...
    def step(self, grads: list[typing.Any], coefficients: list[tuple[float, ...]], trusts: collections.abc.Sequence[typing.Annotated[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], "FixedSize(5)"]]) -> bool:
        ...
class AdafactorStepper:
    def __init__(self, groups: collections.abc.Sequence[tuple[str, collections.abc.Sequence[numpy.ndarray], collections.abc.Sequence[collections.abc.Sequence[numpy.ndarray]]]]) -> None:
        ...
    def norm(self, grads: list[typing.Any]) -> float | None:
        ...
    def step(self, grads: list[typing.Any], coefficients: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]]) -> bool:
        ...
class MuonStepper:
    def __init__(self, groups: collections.abc.Sequence[tuple[str, collections.abc.Sequence[numpy.ndarray], collections.abc.Sequence[collections.abc.Sequence[numpy.ndarray]]]]) -> None:
        ...
    def norm(self, grads: list[typing.Any]) -> float | None:
        ...
    def step(self, grads: list[typing.Any], coefficients: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]]) -> bool:
        ...
class Engine32:
    def __init__(self, model: tuple[str, tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], collections.abc.Mapping[str, numpy.ndarray]], loss: str, capacity: typing.SupportsInt | typing.SupportsIndex, groups: collections.abc.Sequence[tuple[str, collections.abc.Sequence[tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float32], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]]]]]], hogwild: bool, penalty: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float32], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex] | None, mean_factor: typing.SupportsFloat | typing.SupportsIndex | None = None, sharpness_aware: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> None:
        ...
    def begin_epoch(self, done: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], noise: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float32], typing.SupportsFloat | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex] | None) -> None:
        ...
    def measure(self, x: numpy.ndarray, target: numpy.ndarray, weight: numpy.typing.NDArray[numpy.float32] | None, range: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], sparse: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.int32], typing.Annotated[numpy.typing.ArrayLike, numpy.int64]] | None, gradients: numpy.typing.NDArray[numpy.float32], total: numpy.typing.NDArray[numpy.float64] | None) -> tuple[float, float]:
        ...
    def set_exchange(self, exchange: collections.abc.Callable[[float, float], typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...
    def train(self, x: numpy.ndarray, target: numpy.ndarray, order: numpy.typing.NDArray[numpy.int64] | None, weight: numpy.typing.NDArray[numpy.float32] | None, range: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], batch: typing.SupportsInt | typing.SupportsIndex, rows: numpy.typing.NDArray[numpy.float64], max_grad_norm: typing.SupportsFloat | typing.SupportsIndex, nonfinite: str, sparse: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.int32], typing.Annotated[numpy.typing.ArrayLike, numpy.int64]] | None, ends: numpy.typing.NDArray[numpy.int64] | None) -> None:
        ...
    @property
    def penalty(self) -> float:
        ...
    @property
    def skipped(self) -> int:
        ...
    @property
    def steps(self) -> int:
        ...
    @property
    def sums(self) -> tuple[float, float, int, int]:
        ...
    @property
    def wrong(self) -> int:
        ...
class Engine64:
    def __init__(self, model: tuple[str, tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], collections.abc.Mapping[str, numpy.ndarray]], loss: str, capacity: typing.SupportsInt | typing.SupportsIndex, groups: collections.abc.Sequence[tuple[str, collections.abc.Sequence[tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]]]]]], hogwild: bool, penalty: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex] | None, mean_factor: typing.SupportsFloat | typing.SupportsIndex | None = None, sharpness_aware: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> None:
        ...
    def begin_epoch(self, done: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], noise: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.SupportsFloat | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex] | None) -> None:
        ...
    def measure(self, x: numpy.ndarray, target: numpy.ndarray, weight: numpy.typing.NDArray[numpy.float64] | None, range: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], sparse: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.int32], typing.Annotated[numpy.typing.ArrayLike, numpy.int64]] | None, gradients: numpy.typing.NDArray[numpy.float64], total: numpy.typing.NDArray[numpy.float64] | None) -> tuple[float, float]:
        ...
    def set_exchange(self, exchange: collections.abc.Callable[[float, float], typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...
    def train(self, x: numpy.ndarray, target: numpy.ndarray, order: numpy.typing.NDArray[numpy.int64] | None, weight: numpy.typing.NDArray[numpy.float64] | None, range: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], batch: typing.SupportsInt | typing.SupportsIndex, rows: numpy.typing.NDArray[numpy.float64], max_grad_norm: typing.SupportsFloat | typing.SupportsIndex, nonfinite: str, sparse: tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.int32], typing.Annotated[numpy.typing.ArrayLike, numpy.int64]] | None, ends: numpy.typing.NDArray[numpy.int64] | None) -> None:
        ...
    @property
    def penalty(self) -> float:
        ...
    @property
    def skipped(self) -> int:
        ...
    @property
    def steps(self) -> int:
        ...
    @property
    def sums(self) -> tuple[float, float, int, int]:
        ...
    @property
    def wrong(self) -> int:
        ...
class Predictor32:
    def __init__(self, model: tuple[str, tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], collections.abc.Mapping[str, numpy.ndarray]]) -> None:
        ...
    def predict(self, x: numpy.ndarray, y: numpy.typing.NDArray[numpy.float32]) -> bool:
        ...
class Predictor64:
    def __init__(self, model: tuple[str, tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], collections.abc.Mapping[str, numpy.ndarray]]) -> None:
        ...
    def predict(self, x: numpy.ndarray, y: numpy.typing.NDArray[numpy.float64]) -> bool:
        ...
class TensorGradients:
    def __init__(self, params: collections.abc.Sequence[tuple[typing.Any, typing.SupportsInt | typing.SupportsIndex, collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], written: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], device: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...
    def find(self, grads: list[typing.Any]) -> tuple[numpy.typing.NDArray[numpy.uint64], int] | None:
        ...
@typing.overload
def activation_backward(kind: str, dy: numpy.typing.NDArray[numpy.float32], kept: numpy.typing.NDArray[numpy.float32], dx: numpy.typing.NDArray[numpy.float32], a: typing.SupportsFloat | typing.SupportsIndex = 0.0, b: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> None:
    ...
@typing.overload
def activation_backward(kind: str, dy: numpy.typing.NDArray[numpy.float64], kept: numpy.typing.NDArray[numpy.float64], dx: numpy.typing.NDArray[numpy.float64], a: typing.SupportsFloat | typing.SupportsIndex = 0.0, b: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> None:
    ...
@typing.overload
def activation_forward(kind: str, x: numpy.typing.NDArray[numpy.float32], y: numpy.typing.NDArray[numpy.float32], a: typing.SupportsFloat | typing.SupportsIndex = 0.0, b: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> None:
    ...
@typing.overload
def activation_forward(kind: str, x: numpy.typing.NDArray[numpy.float64], y: numpy.typing.NDArray[numpy.float64], a: typing.SupportsFloat | typing.SupportsIndex = 0.0, b: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> None:
    ...
def activation_kinds() -> dict[str, bool]:
    """
    The name of each activation, and whether it keeps its input (else its output) for the backward pass.
    """
def any_outside(x: numpy.ndarray, low: typing.SupportsFloat | typing.SupportsIndex, high: typing.SupportsFloat | typing.SupportsIndex) -> bool:
    ...
def compiled_kinds() -> tuple[list[str], list[str]]:
    """
    The classes of layers and of losses that the engine and the C++ API know.
    """
@typing.overload
def dense_backward(dy: numpy.typing.NDArray[numpy.float32], x: numpy.typing.NDArray[numpy.float32], weight: numpy.typing.NDArray[numpy.float32], y: numpy.typing.NDArray[numpy.float32] | None, activation: str | None, dx: numpy.typing.NDArray[numpy.float32] | None, dweight: numpy.typing.NDArray[numpy.float32] | None, dbias: numpy.typing.NDArray[numpy.float32] | None) -> None:
    ...
@typing.overload
def dense_backward(dy: numpy.typing.NDArray[numpy.float64], x: numpy.typing.NDArray[numpy.float64], weight: numpy.typing.NDArray[numpy.float64], y: numpy.typing.NDArray[numpy.float64] | None, activation: str | None, dx: numpy.typing.NDArray[numpy.float64] | None, dweight: numpy.typing.NDArray[numpy.float64] | None, dbias: numpy.typing.NDArray[numpy.float64] | None) -> None:
    ...
@typing.overload
def dense_forward(x: numpy.typing.NDArray[numpy.float32], weight: numpy.typing.NDArray[numpy.float32], bias: numpy.typing.NDArray[numpy.float32] | None, activation: str | None, y: numpy.typing.NDArray[numpy.float32]) -> None:
    ...
@typing.overload
def dense_forward(x: numpy.typing.NDArray[numpy.float64], weight: numpy.typing.NDArray[numpy.float64], bias: numpy.typing.NDArray[numpy.float64] | None, activation: str | None, y: numpy.typing.NDArray[numpy.float64]) -> None:
    ...
def divide_grains(by: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Divides what must be there to do for each thread that is woken; 1 is the library's own choice.
    """
@typing.overload
def dropout(x: numpy.typing.NDArray[numpy.float32], p: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, step: typing.SupportsInt | typing.SupportsIndex, y: numpy.typing.NDArray[numpy.float32]) -> None:
    ...
@typing.overload
def dropout(x: numpy.typing.NDArray[numpy.float64], p: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, step: typing.SupportsInt | typing.SupportsIndex, y: numpy.typing.NDArray[numpy.float64]) -> None:
    ...
@typing.overload
def exponential(x: numpy.typing.NDArray[numpy.float32], y: numpy.typing.NDArray[numpy.float32]) -> None:
    """
    The kernels' own exp, for its tests.
    """
@typing.overload
def exponential(x: numpy.typing.NDArray[numpy.float64], y: numpy.typing.NDArray[numpy.float64]) -> None:
    """
    The kernels' own exp, for its tests.
    """
def fitting(pattern: str) -> collections.abc.Callable[..., typing.Any]:
    ...
@typing.overload
def gaussian_noise(x: numpy.typing.NDArray[numpy.float32], std: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, step: typing.SupportsInt | typing.SupportsIndex, y: numpy.typing.NDArray[numpy.float32]) -> None:
    ...
@typing.overload
def gaussian_noise(x: numpy.typing.NDArray[numpy.float64], std: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, step: typing.SupportsInt | typing.SupportsIndex, y: numpy.typing.NDArray[numpy.float64]) -> None:
    ...
def get_num_threads() -> int:
    ...
def has_state_layouts(states: dict[typing.Any, typing.Any], layouts: bytes) -> bool:
    """
    Whether state_layouts would return the same.
    """
def instruction_set() -> str:
    ...
def instruction_sets() -> list[str]:
    """
    Those that run here, best first.
    """
@typing.overload
def kl_divergence(logits: numpy.typing.NDArray[numpy.float32], target: numpy.typing.NDArray[numpy.float32], dlogits: numpy.typing.NDArray[numpy.float32] | None, sample_weight: numpy.typing.NDArray[numpy.float32] | None, temperature: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
@typing.overload
def kl_divergence(logits: numpy.typing.NDArray[numpy.float64], target: numpy.typing.NDArray[numpy.float64], dlogits: numpy.typing.NDArray[numpy.float64] | None, sample_weight: numpy.typing.NDArray[numpy.float64] | None, temperature: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
@typing.overload
def label_weights(labels: numpy.typing.NDArray[numpy.int64], class_weight: numpy.typing.NDArray[numpy.float32]) -> float:
    ...
@typing.overload
def label_weights(labels: numpy.typing.NDArray[numpy.int64], class_weight: numpy.typing.NDArray[numpy.float64]) -> float:
    ...
@typing.overload
def layer_norm_backward(dy: numpy.typing.NDArray[numpy.float32], x: numpy.typing.NDArray[numpy.float32], gamma: numpy.typing.NDArray[numpy.float32] | None, saved: tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]], gradients: tuple[numpy.typing.NDArray[numpy.float32] | None, numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]) -> None:
    ...
@typing.overload
def layer_norm_backward(dy: numpy.typing.NDArray[numpy.float64], x: numpy.typing.NDArray[numpy.float64], gamma: numpy.typing.NDArray[numpy.float64] | None, saved: tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]], gradients: tuple[numpy.typing.NDArray[numpy.float64] | None, numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]) -> None:
    ...
@typing.overload
def layer_norm_forward(x: numpy.typing.NDArray[numpy.float32], affine: tuple[numpy.typing.NDArray[numpy.float32] | None, numpy.typing.NDArray[numpy.float32] | None], eps: typing.SupportsFloat | typing.SupportsIndex, y: numpy.typing.NDArray[numpy.float32], saved: tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]) -> None:
    ...
@typing.overload
def layer_norm_forward(x: numpy.typing.NDArray[numpy.float64], affine: tuple[numpy.typing.NDArray[numpy.float64] | None, numpy.typing.NDArray[numpy.float64] | None], eps: typing.SupportsFloat | typing.SupportsIndex, y: numpy.typing.NDArray[numpy.float64], saved: tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]) -> None:
    ...
def most_parts() -> int:
    """
    Parts of the largest region that this thread began since the last call; 1 if all ran here.
    """
def most_threads() -> int:
    ...
def multiply_add(dtype: str, n: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    n rounds of multiply-adds in the registers of all threads; returns the number of operations.
    """
def next_coefficients(name: str, options: collections.abc.Mapping[str, bool | typing.SupportsFloat | typing.SupportsIndex | typing.Annotated[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], "FixedSize(2)"] | str | None], step: typing.SupportsInt | typing.SupportsIndex, mu_product: typing.SupportsFloat | typing.SupportsIndex, lr: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], begun: typing.SupportsInt | typing.SupportsIndex = 1) -> tuple[str, numpy.typing.NDArray[numpy.float64], list[float]]:
    """
    The rule of an optimizer of the C++ API; its coefficients of the steps after `step`, one row for each learning rate; and the products of NAdam's momenta before the first and after each. `begun` is the step in which the rule began that keeps a momentum.
    """
def norm(arrays: list[numpy.typing.NDArray[numpy.float32] | numpy.typing.NDArray[numpy.float64]]) -> float:
    ...
@typing.overload
def norm_backward(dy: numpy.typing.NDArray[numpy.float32], x: numpy.typing.NDArray[numpy.float32], affine: tuple[numpy.typing.NDArray[numpy.float32] | None, numpy.typing.NDArray[numpy.float32] | None], saved: tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], bool], relu: bool, gradients: tuple[numpy.typing.NDArray[numpy.float32] | None, numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]) -> None:
    ...
@typing.overload
def norm_backward(dy: numpy.typing.NDArray[numpy.float64], x: numpy.typing.NDArray[numpy.float64], affine: tuple[numpy.typing.NDArray[numpy.float64] | None, numpy.typing.NDArray[numpy.float64] | None], saved: tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], bool], relu: bool, gradients: tuple[numpy.typing.NDArray[numpy.float64] | None, numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]) -> None:
    ...
@typing.overload
def norm_forward(x: numpy.typing.NDArray[numpy.float32], affine: tuple[numpy.typing.NDArray[numpy.float32] | None, numpy.typing.NDArray[numpy.float32] | None], running: tuple[numpy.typing.NDArray[numpy.float32] | None, numpy.typing.NDArray[numpy.float32] | None], options: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, bool, bool, bool], y: numpy.typing.NDArray[numpy.float32], saved: tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]) -> None:
    ...
@typing.overload
def norm_forward(x: numpy.typing.NDArray[numpy.float64], affine: tuple[numpy.typing.NDArray[numpy.float64] | None, numpy.typing.NDArray[numpy.float64] | None], running: tuple[numpy.typing.NDArray[numpy.float64] | None, numpy.typing.NDArray[numpy.float64] | None], options: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, bool, bool, bool], y: numpy.typing.NDArray[numpy.float64], saved: tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]) -> None:
    ...
def optimizer_options() -> dict[str, dict[str, float | bool | typing.Annotated[list[float], "FixedSize(2)"] | str]]:
    """
    Every optimizer of the C++ API: its name -> its hyperparameters with their defaults.
    """
@typing.overload
def penalty(parameters: numpy.typing.NDArray[numpy.float32], gradients: numpy.typing.NDArray[numpy.float32], runs: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], l2: typing.SupportsFloat | typing.SupportsIndex, l1: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
@typing.overload
def penalty(parameters: numpy.typing.NDArray[numpy.float64], gradients: numpy.typing.NDArray[numpy.float64], runs: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], l2: typing.SupportsFloat | typing.SupportsIndex, l1: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
def philox(counter: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"], key: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"]) -> typing.Annotated[list[int], "FixedSize(4)"]:
    """
    Four words of Philox4x32-10.
    """
@typing.overload
def pointwise_loss(kind: str, prediction: numpy.typing.NDArray[numpy.float32], target: numpy.typing.NDArray[numpy.float32], dprediction: numpy.typing.NDArray[numpy.float32] | None, sample_weight: numpy.typing.NDArray[numpy.float32] | None, parameter: float | numpy.typing.NDArray[numpy.float32]) -> float:
    ...
@typing.overload
def pointwise_loss(kind: str, prediction: numpy.typing.NDArray[numpy.float64], target: numpy.typing.NDArray[numpy.float64], dprediction: numpy.typing.NDArray[numpy.float64] | None, sample_weight: numpy.typing.NDArray[numpy.float64] | None, parameter: float | numpy.typing.NDArray[numpy.float64]) -> float:
    ...
def processor_quota(root: str = '') -> int:
    """
    Processors that the quota of this process's control groups is worth; 0 if it has none.
    """
def quantized_dense(x: numpy.typing.NDArray[numpy.float32], inverse: typing.SupportsFloat | typing.SupportsIndex, zero: typing.SupportsInt | typing.SupportsIndex, weight: numpy.typing.NDArray[numpy.int8], offset: numpy.typing.NDArray[numpy.int32], scale: numpy.typing.NDArray[numpy.float32], bias: numpy.typing.NDArray[numpy.float32], relu: bool, y: numpy.typing.NDArray[numpy.float32]) -> None:
    ...
def rules() -> dict[str, tuple[str, str]]:
    """
    Every rule: its name -> (names of its states, names of its coefficients).
    """
def set_num_threads(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
@typing.overload
def softmax_backward(log: bool, dy: numpy.typing.NDArray[numpy.float32], y: numpy.typing.NDArray[numpy.float32], dx: numpy.typing.NDArray[numpy.float32]) -> None:
    ...
@typing.overload
def softmax_backward(log: bool, dy: numpy.typing.NDArray[numpy.float64], y: numpy.typing.NDArray[numpy.float64], dx: numpy.typing.NDArray[numpy.float64]) -> None:
    ...
@typing.overload
def softmax_cross_entropy(logits: numpy.typing.NDArray[numpy.float32], target: numpy.typing.NDArray[numpy.int64], dlogits: numpy.typing.NDArray[numpy.float32] | None, sample_weight: numpy.typing.NDArray[numpy.float32] | None, class_weight: numpy.typing.NDArray[numpy.float32] | None, smoothing: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
@typing.overload
def softmax_cross_entropy(logits: numpy.typing.NDArray[numpy.float32], target: numpy.typing.NDArray[numpy.float32], dlogits: numpy.typing.NDArray[numpy.float32] | None, sample_weight: numpy.typing.NDArray[numpy.float32] | None, class_weight: numpy.typing.NDArray[numpy.float32] | None, smoothing: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
@typing.overload
def softmax_cross_entropy(logits: numpy.typing.NDArray[numpy.float64], target: numpy.typing.NDArray[numpy.int64], dlogits: numpy.typing.NDArray[numpy.float64] | None, sample_weight: numpy.typing.NDArray[numpy.float64] | None, class_weight: numpy.typing.NDArray[numpy.float64] | None, smoothing: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
@typing.overload
def softmax_cross_entropy(logits: numpy.typing.NDArray[numpy.float64], target: numpy.typing.NDArray[numpy.float64], dlogits: numpy.typing.NDArray[numpy.float64] | None, sample_weight: numpy.typing.NDArray[numpy.float64] | None, class_weight: numpy.typing.NDArray[numpy.float64] | None, smoothing: typing.SupportsFloat | typing.SupportsIndex) -> float:
    ...
@typing.overload
def softmax_forward(log: bool, x: numpy.typing.NDArray[numpy.float32], y: numpy.typing.NDArray[numpy.float32]) -> None:
    ...
@typing.overload
def softmax_forward(log: bool, x: numpy.typing.NDArray[numpy.float64], y: numpy.typing.NDArray[numpy.float64]) -> None:
    ...
def state_layouts(states: dict[typing.Any, typing.Any]) -> bytes:
    """
    What differs where a dict of dicts or one of these holds other objects, or a tensor in one of them has got other memory or another form. The objects must be kept: their addresses tell them apart.
    """
def stream_update(a: numpy.typing.NDArray[numpy.float64], b: numpy.typing.NDArray[numpy.float64], s: typing.SupportsFloat | typing.SupportsIndex) -> None:
    """
    a += s * b on all threads: 24 bytes of memory traffic an element.
    """
def tensor_gradients(lists: list[list[typing.Any]], layouts: bytes) -> list[typing.Any] | None:
    """
    The gradients of tensors that are as they were for tensor_layouts; none, or one for each.
    """
def tensor_layouts(lists: list[list[typing.Any]]) -> bytes | None:
    """
    What differs where lists hold other tensors, or one has got other memory or another form; None where one does not say.
    """
def use_instruction_set(name: str) -> None:
    ...
common_coefficients: str = 'grad_scale, weight_decay, param_scale'
