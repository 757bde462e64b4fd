"""Memory-efficient meta-learning in JAX.

Write a loss that sums over a support set with one `set_sum`. `lite_grad` returns an
unbiased estimate of its gradient, in the memory of one chunk of examples. See
`lite_jax.lite`.

Names are imported on first use (PEP 562): `from lite_jax import lite_grad` imports only
the modules of the gradient, which need JAX and NumPy.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; a test compares it with `_MODULES`
    from lite_jax.classify import load
    from lite_jax.errors import UserError
    from lite_jax.learners.cnaps import cnaps, simple_cnaps
    from lite_jax.learners.episode_loss import episode_grad, episode_loss
    from lite_jax.learners.finetuner import finetuner
    from lite_jax.learners.imaml import imaml
    from lite_jax.learners.maml import maml
    from lite_jax.learners.mrml import mrml
    from lite_jax.learners.protonets import protonets
    from lite_jax.lite import (
        Pooled,
        Sampler,
        batched,
        exact_grad,
        exact_map,
        exact_sum,
        exact_value_and_grad,
        lite_grad,
        lite_map,
        lite_sum,
        lite_value_and_grad,
        per_example,
        subsample_sum,
    )
    from lite_jax.testing import check_additive
    from lite_jax.types import Examples, GradFn, Learner, Network, SetSum, Task

__version__ = "0.1.0"

__all__ = [
    "Examples",
    "GradFn",
    "Learner",
    "Network",
    "Pooled",
    "Sampler",
    "SetSum",
    "Task",
    "UserError",
    "batched",
    "check_additive",
    "cnaps",
    "episode_grad",
    "episode_loss",
    "exact_grad",
    "exact_map",
    "exact_sum",
    "exact_value_and_grad",
    "finetuner",
    "imaml",
    "lite_grad",
    "lite_map",
    "lite_sum",
    "lite_value_and_grad",
    "load",
    "maml",
    "mrml",
    "per_example",
    "protonets",
    "simple_cnaps",
    "subsample_sum",
]

_MODULES = {
    "classify": ["load"],
    "errors": ["UserError"],
    "learners.cnaps": ["cnaps", "simple_cnaps"],
    "learners.finetuner": ["finetuner"],
    "learners.imaml": ["imaml"],
    "learners.maml": ["maml"],
    "learners.mrml": ["mrml"],
    "learners.protonets": ["protonets"],
    "lite": ["Pooled", "Sampler", "batched", "exact_grad",
             "exact_map", "exact_sum", "exact_value_and_grad", "lite_grad", "lite_map",
             "lite_sum", "lite_value_and_grad", "per_example", "subsample_sum"],
    "learners.episode_loss": ["episode_grad", "episode_loss"],
    "testing": ["check_additive"],
    "types": ["Examples", "GradFn", "Learner", "Network", "SetSum", "Task"],
}  # fmt: skip


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that imports names on first use.

    Args:
        package: The package's `__name__`.
        modules: Module, relative to the package → names that it defines.
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name in module_of:
            module = importlib.import_module(f"{package}.{module_of[name]}")
            namespace[name] = getattr(module, name)
            return namespace[name]
        full_name = f"{package}.{name}"
        known = name.isidentifier() and importlib.util.find_spec(full_name) is not None
        if name.startswith("_") or not known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(full_name)

    return get, lambda: sorted({*namespace, *module_of})


__getattr__, __dir__ = lazy_names(__name__, _MODULES)
