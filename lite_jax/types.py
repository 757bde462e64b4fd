"""The containers and function types that every other module speaks.

This file imports nothing of the package, so that everything can import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import jax

PyTree = Any
Params = Any
Key = Any
Additive = Callable[[PyTree, PyTree, Any], PyTree]


class Examples(NamedTuple):
    """A support or query set, padded to a static size.

    Attributes:
        inputs: Images `[n, height, width, channels]`, usually uint8; they are
            normalised on the device, inside the network.
        labels: Class indices `[n]` int32 in `0 … way-1`.
        mask: `[n]` bool; True marks a real example, False marks padding.
    """

    inputs: Any
    labels: Any
    mask: Any


class Task(NamedTuple):
    """One few-shot problem: adapt on `support`, be judged on `query`.

    The papers of the LITE family say context and target. The number of classes is
    not stored here: it is a static maximum that the learner is built with.
    """

    support: Examples
    query: Examples


class Network(NamedTuple):
    """A network as two pure functions over a plain dictionary of parameters.

    Attributes:
        init: `(key, example_spec) -> params`; `example_spec` is the
            `jax.ShapeDtypeStruct` of one image `[height, width, channels]`.
        apply: `(params, inputs [n, height, width, channels]) -> features [n, d]`;
            row i depends on image i alone. A network with FiLM takes its parameters
            as a third argument.
        identity_film: `() -> film`, the FiLM parameters that change nothing: a tree
            of `{"scale": ones [c], "shift": zeros [c]}`, one a place. None for a
            network without FiLM.
        describe: `(image shape, way) -> Architecture` (`lite_jax.nn.description`), its
            layers and a linear head of `way` outputs. None where there is none.
    """

    init: Callable[[Key, Any], Params]
    apply: Callable[..., Any]
    identity_film: Callable[[], PyTree] | None = None
    describe: Callable[[tuple[int, ...], int], Any] | None = None


class SetSum(Protocol):
    """A weighted sum over a set of examples, with a choice of backward pass.

    Computes `Σ_n mask_n · term(args, x_n)`; see `lite_jax.lite` for the operators.
    """

    def __call__(
        self,
        additive: Additive,
        args: PyTree,
        examples: PyTree,
        key: Key,
        mask: jax.Array | None = None,
    ) -> PyTree:
        """Return the aggregate of `examples`."""
        ...


class Learner(NamedTuple):
    """A meta-learner as pure functions.

    Attributes:
        init: `(key, example_spec) -> params`, a dictionary; the feature extractor's
            parameters are under "backbone".
        encode: `(args, example) -> term`, the per-example encoder e_φ(x, y) whose
            terms are summed over the support set, in its last sum where there are
            several; `example` is one of that sum's examples, most often an `Examples`
            without the leading axis.
        adapt: `(params, support, key, set_sum) -> task_state`.
        predict: `(params, task_state, inputs [m, …]) -> logits [m, way]`; a class
            absent from the support has logit −inf.
        frozen: Names in `params` that are not learned: `episode_grad` does not
            differentiate them, so they cost no gradient memory.
        fixed_features: Whether the backbone's features of an image are the same for
            every task. The same learner on a backbone that returns its inputs then
            takes features in place of images.
        penalty: `(params, task) -> scalar`, added to the loss of a task; None for none.
        constraint: An `optax.GradientTransformation`, the last part of an optimiser of
            the parameters, which keeps them where they have to be; None for none.
    """

    init: Callable[[Key, Any], Params]
    encode: Callable[[PyTree, Any], PyTree]
    adapt: Callable[[Params, Examples, Key, SetSum], PyTree]
    predict: Callable[[Params, PyTree, Any], Any]
    frozen: tuple[str, ...] = ()
    fixed_features: bool = False
    penalty: Callable[[Params, Task], Any] | None = None
    constraint: Any = None


GradFn = Callable[[Params, Task, Key], tuple[tuple[Any, Any], Params]]
"""`(params, task, key) -> ((loss, aux), grads)`: all that the trainer sees.

`grads` holds the learned parameters alone, by their names in `params`.
"""
