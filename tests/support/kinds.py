"""Layers and losses for the tests of every kind: the package and the oracles say which kinds there are."""

from oracles import layers as oracles

from pyoptim import nn
from pyoptim.formulas.activations import ACTIVATIONS
from pyoptim.formulas.losses import POINTWISE

# The layers that are no elementwise activations, apart from Residual, which is made of others.
LAYERS = tuple(oracles.LAYERS)


def layer(name):
    """One of LAYERS, for inputs of 8 features."""
    return getattr(nn, name)(**oracles.LAYERS[name][0])


def activations():
    """A layer of each activation, and where it has options one in which they are not the defaults."""
    made = [nn.GELU("tanh")]
    for kind in nn.activations.ELEMENTWISE:
        made.append(kind())
        defaults = ACTIVATIONS[made[-1].kind].defaults
        if defaults:
            made.append(kind(**{name: value + 0.25 for name, value in defaults.items()}))
    return made


def pointwise_losses():
    """A loss of each pointwise class, and where it has an option one in which that is not the default."""
    made = []
    for kind in nn.losses.ELEMENTWISE:
        made.append(kind())
        option = POINTWISE[kind.kind].parameter
        if option is not None:
            made.append(kind(**{option: 0.3}))
    return made


def pointwise_targets(kind, rng, shape):
    """Random targets that a pointwise loss allows."""
    candidates = rng.normal(0, 2, size=shape), rng.random(shape), rng.choice([-1.0, 1.0], shape)
    return next(t for t in candidates if POINTWISE[kind].allows(t).all())


def is_allowed(function, *arguments, **options):
    """Whether a call is not refused."""
    try:
        function(*arguments, **options)
    except (ValueError, RuntimeError):
        return False
    return True
