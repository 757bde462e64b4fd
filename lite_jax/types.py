"""Containers and function types that the whole package uses.

This module imports nothing from the package, so that every other module can import it.
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
        inputs: Images `[n, height, width, channels]`, usually uint8. The network
            normalises them, on the device.
        labels: `[n]` int32, class indices in `0 … way-1`.
        mask: `[n]` bool, True for real examples, False for padding.
    """

    inputs: Any
    labels: Any
    mask: Any


class Task(NamedTuple):
    """One few-shot problem: a learner adapts on `support` and is tested on `query`.

    The papers on LITE call the two sets context and target. A task does not store the
    number of classes: the learner has a static maximum, its `way`.
    """

    support: Examples
    query: Examples


class Network(NamedTuple):
    """A network as pure functions over a plain dictionary of parameters.

    Attributes:
        init: `(key, example_spec) -> params`; `example_spec` is the
            `jax.ShapeDtypeStruct` of one image `[height, width, channels]`.
        apply: `(params, inputs [n, height, width, channels]) -> features [n, d]`;
            row i depends on image i alone. A network with FiLM takes FiLM parameters as
            an optional third argument.
        identity_film: `() -> film`, the FiLM parameters that change nothing: a tree
            with `{"scale": ones [c], "shift": zeros [c]}` for each FiLM layer. None for
            a network without FiLM.
        describe: `(image shape, way) -> Architecture` (`lite_jax.nn.description`), the
            layers of the network and a linear head of `way` outputs. None for a network
            without description.
    """

    init: Callable[[Key, Any], Params]
    apply: Callable[..., Any]
    identity_film: Callable[[], PyTree] | None = None
    describe: Callable[[tuple[int, ...], int], Any] | None = None


class SetMap(Protocol):
    """A map over a set of examples, with a choice of backward pass.

    Computes the rows `encode(args, x_n)`; see `lite_jax.lite` for the operators.
    """

    def __call__(
        self,
        encode: Callable[[PyTree, PyTree], PyTree],
        args: PyTree,
        examples: PyTree,
        key: Key,
        mask: jax.Array | None = None,
    ) -> PyTree:
        """Return the rows `encode(args, x_n)`, `[n, …]`; those of padding are 0.

        Args:
            encode: `(args, examples [n]) -> rows [n, …]`, any tree; row i depends on
                example i alone.
            args: First argument of `encode`, which is differentiated.
            examples: The set, a tree of arrays with leading axis `n`.
            key: Key of the draw; operators that draw nothing accept None.
            mask: `[n]` bool, True for real examples; None if all are real.
        """
        ...


class SetSum(Protocol):
    """A weighted sum over a set of examples, with a choice of backward pass.

    Computes `Σ_n mask_n · term(args, x_n)`; see `lite_jax.lite` for the operators.
    `map` is the map with the same backward pass.
    """

    @property
    def map(self) -> SetMap:
        """The map with the same backward pass."""
        ...

    def __call__(
        self,
        additive: Additive,
        args: PyTree,
        examples: PyTree,
        key: Key,
        mask: jax.Array | None = None,
    ) -> PyTree:
        """Return `Σ_n mask_n · term(args, x_n)`.

        Args:
            additive: `(args, examples, weights) -> aggregate`, see
                `lite_jax.lite.additive`.
            args: First argument of `additive`, which is differentiated.
            examples: The set, a tree of arrays with leading axis `n`.
            key: Key of the draw; operators that draw nothing accept None.
            mask: `[n]` bool, True for real examples; None if all are real.
        """
        ...


class Learner(NamedTuple):
    """A meta-learner as pure functions.

    Attributes:
        init: `(key, example_spec) -> params`, a dictionary; the feature extractor's
            parameters are under "backbone".
        encode: `(args, example) -> term`, the per-example encoder e_φ(x, y). `adapt`
            sums its terms over the support set; of several sums, it is the last one.
            `example` is one example of that sum, usually an `Examples` without the
            leading axis.
        adapt: `(params, support, key, set_sum) -> task_state`.
        predict: `(params, task_state, inputs [m, …]) -> logits [m, way]`; a class that
            the support set lacks has logit −inf.
        frozen: Names in `params` that are not learned. `episode_grad` does not
            differentiate them, so they need no gradient memory.
        fixed_features: Whether the backbone's features of an image are the same for
            every task. If so, the same learner on a backbone that returns its inputs
            accepts features in place of images.
        penalty: `(params, task) -> scalar`, added to the loss of a task; None for no
            penalty.
        constraint: An `optax.GradientTransformation`, applied last by the optimiser of
            the parameters to keep them in their allowed range; None for no constraint.
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
"""The gradient function of one task: `(params, task, key) -> ((loss, aux), grads)`.

`grads` holds the gradients of the learned parameters only, by their names in `params`.
"""
