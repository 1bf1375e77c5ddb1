"""What training, planning, checkpoints and probes know of an objective."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from jepa_jax.batch.spec import BatchSpec, Shapes

Params = Any  # a tree of float32 arrays
Batch = dict[str, Array]
NEVER = 2**31 - 1  # in `Objective.trains`: of parameters that stay as they are


class Clock(NamedTuple):
    """The time of a run, for what changes along it: temperatures, ramps, momentum."""

    step: Array | int  # optimizer steps taken before this one
    horizon: float  # of the schedules, in steps


class Outlook(NamedTuple):
    """What can be told of a run before its first step, each in one line."""

    facts: tuple[str, ...]
    warnings: tuple[str, ...]  # with the field to change, where the run can't work


class Objective(NamedTuple):
    """A training objective as pure functions.

    Attributes:
      needs: what a batch must hold.
      init: random key -> parameters.
      loss: (parameters, objective's state, batch, random key, clock) -> (scalar float32, out). The
        gradient is taken with respect to the first argument alone. `out["metrics"]`, scalars by
        name, is logged; all of `out` reaches the update of the state.
      state: horizon in steps -> the transformation whose state is what no gradient trains: a moving
        average, a queue, nothing. `update(updates, state, params, out=out)` is called with the
        final updates of a step, and the parameters before them.
      encoders: name -> path in the `TrainState`, as ("params", "encoder"). The first is probed.
      encode: (weights of one encoder, images [B, H, W, C], layers) -> tokens float32 [B, N, D], of
        the last block; with `layers`, blocks counted from 0 and ascending, [L, B, N, D].
      flops: shapes of a batch -> floating-point operations per example, by part.
      trains: parameters -> a tree like them of the first steps at which they are trained (`NEVER`
        for those that are not); None: all, from the start.
      mean_over_examples: whether the loss is the mean of a function of single examples. If not
        (batch statistics, negatives), gradients of micro-batches can't be accumulated.
      classify: (parameters, objective's state, images [B, H, W, C]) -> logits float32 [B, classes],
        with the averaged weights where there are any; None: it tells no classes apart.
      outlook: (steps, horizon, whether it starts at random) -> what can be told of a run of that
        many steps; None: nothing.
      predict: (parameters, objective's state, images [B, H, W, C], context_index [B, K],
        target_index [B, M, T]) -> (predictions, targets), both [B, M, T, D], as the loss compares
        them, without stochastic depth; None: the objective predicts no hidden features.
    """

    needs: BatchSpec
    init: Callable[[Array], Params]
    loss: Callable[[Params, Any, Batch, Array, Clock], tuple[Float[Array, ""], dict[str, Any]]]
    state: Callable[[float], optax.GradientTransformation]
    encoders: Mapping[str, tuple[str, ...]]
    encode: Callable[..., Float[Array, "B N D"] | Float[Array, "L B N D"]]
    flops: Callable[[Shapes], dict[str, float]]
    trains: Callable[[Params], Any] | None = None
    mean_over_examples: bool = True
    classify: Callable[[Params, Any, Array], Float[Array, "B classes"]] | None = None
    outlook: Callable[[int, float, bool], Outlook] | None = None
    predict: Callable[[Params, Any, Array, Array, Array], tuple[Array, Array]] | None = None


def no_state(horizon: float) -> optax.GradientTransformation:
    """The `state` of an objective that has none."""
    del horizon
    return optax.identity()


def train_from(params: Mapping[str, Any], first_steps: Mapping[str, int]) -> dict[str, Any]:
    """`Objective.trains` by parts of the parameters; those that are not named: from the start."""

    def constant(tree: Any, first: int) -> Any:
        return jax.tree.map(lambda _: first, tree)

    return {name: constant(tree, first_steps.get(name, 0)) for name, tree in params.items()}


def initial_encoder(objective: Objective, seed: int, name: str | None = None) -> Params:
    """An encoder's weights before the first step of a run.

    Args:
      name: in `objective.encoders`; None: the first.
    """
    name = name or next(iter(objective.encoders))

    def initial() -> Params:
        params = objective.init(jax.random.key(seed))
        state = objective.state(1.0).init(params)
        return at_path({"params": params, "objective_state": state}, objective.encoders[name])

    return jax.jit(initial)()


def at_path(tree: Any, path: tuple[str, ...]) -> Any:
    """What lies at a path of keys and field names."""
    for name in path:
        tree = tree[name] if isinstance(tree, Mapping) else getattr(tree, name)
    return tree


def replace_at_path(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    """The same tree with something else at a path of keys and field names."""
    if not path:
        return value
    name, *rest = path
    inner = replace_at_path(at_path(tree, (name,)), tuple(rest), value)
    if isinstance(tree, Mapping):
        return {**tree, name: inner}
    return tree._replace(**{name: inner})
