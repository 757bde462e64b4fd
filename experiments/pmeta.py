"""p-Meta beside MAML, ANIL, BOIL and MAML++, and what its parts do: 5-way tasks.

    python -m experiments.pmeta [--dataset=digits|omniglot|folder] [--root=FOLDER]
        [--shot=1] [--steps=300] [--penalty=1] [--penalty_on=inputs|memory]
        [--seed=0] [--only=PART] [--method=ONE] [--smoke]
        [--out=experiments/results/pmeta.jsonl]

All methods train on the same tasks, Conv-4 of 32 channels (28 pixels; photographs 42),
with a learned head, five inner steps and second order, and are tested as on a device:
the support one image at a time, gradients accumulated (`lite_jax.pmeta.plan`). Parts:

- "methods": the paper's Table 2. `layers`: how many of the nine train at each step;
  `paper_mb` and `mmacs`: the paper's model, the mean over the steps, of one image;
  `most_paper_mb`: of the costliest step; `step_mb`: what the compiled accumulating step
  of the costliest set of layers needs besides its arguments.
- "scores": Table 4, what attention looks at and how much it cuts off, and channels'
  step sizes learned once for all inputs in its place.
- "batch": Table 6, test batches of several sizes, of what "methods" trains last.
- "passed on": Table 7, scores that multiply what is passed on, in place of gradients
  of weights.
- "network": Table 5, pooling and norm under MAML.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.pmeta_memory import compiled_mb
from experiments.few_shot import WAY, add_data, few_shot_config
from experiments.pmeta_variants import POOLS, channel_steps, conv4_with, passed_on
from experiments.rows import emit, parser, rounded
from experiments.sections import Row
from lite_jax import Examples, Learner, Network, Task, maml
from lite_jax.heads.class_means import linear_products
from lite_jax.learners.inner_rules import InnerRule
from lite_jax.nn.description import Architecture
from lite_jax.pmeta.attention import Attention
from lite_jax.pmeta.memory_model import MB, count_macs, count_memory
from lite_jax.pmeta.plan import (
    Plan,
    fixed_plan,
    inner_params,
    learned_plan,
    make_adapt,
    make_step,
)
from lite_jax.run import (
    build_backbone,
    build_data,
    build_gradient,
    build_learner,
    metrics,
)
from lite_jax.run.configs import read_settings
from lite_jax.run.evaluate import make_scorer, split_tasks
from lite_jax.run.feed import Feed
from lite_jax.run.settings import InnerRuleSettings, Settings
from lite_jax.run.train import init_state, make_train_step
from lite_jax.types import Params

QUERY = 10
TOLD = ("dataset", "shot", "steps", "seed", "penalty", "penalty_on")
FIXED, START = 0.1, 0.02  # step sizes: those that stay, and where learned ones start


def main(argv: Sequence[str] | None = None) -> None:
    """Emit the rows of every part."""
    found = parser("p-Meta beside other inner rules, and its ablations")
    add_data(found)
    found.add_argument("--shot", type=int, default=1, help="support images of a class")
    found.add_argument("--steps", type=int, default=300, help="of meta-training")
    found.add_argument("--tasks", type=int, default=600, help="tested")
    found.add_argument("--penalty", type=float, default=1.0, help="λ of p-Meta")
    found.add_argument("--penalty_on", default="inputs", help="or memory")
    found.add_argument("--seed", type=int, default=0, help="of weights and tasks")
    found.add_argument("--only", default="", choices=("", *PARTS), help="one part")
    found.add_argument("--method", choices=METHODS, help="one of them")
    arguments = found.parse_args(argv)
    if arguments.smoke:
        arguments.steps, arguments.tasks = 1, 2
    for name in [arguments.only] if arguments.only else list(PARTS):
        for row in PARTS[name](arguments):
            told = {setting: getattr(arguments, setting) for setting in TOLD}
            start = {"experiment": "pmeta", "part": name}
            emit(arguments.out, start | told | rounded(row))


# ------------------------------------------------------------------------ training


class Trained(NamedTuple):
    """A learner after meta-training, with what testing it takes."""

    config: Settings
    sources: build_data.Sources
    learner: Learner
    params: Params
    seconds: float

    @property
    def tasks(self) -> Iterable[Task]:
        """The tested tasks, whole: none of their images is padding."""
        settings = self.config.test.episodes["test"]
        count = self.config.test.tasks
        tested = self.sources("test")
        return split_tasks(self.config, settings, tested, "test.test", count)

    def plan(self) -> Plan:
        """Return what each step trains."""
        network = architecture_of(self.config, self.sources)
        return plan_of(network, self.config.inner, self.params)


def plan_of(network: Architecture, inner: InnerRuleSettings, params: Params) -> Plan:
    """Return what each step of an inner rule trains: MAML, ANIL, BOIL or p-Meta."""
    if inner.rule == "p_meta":
        return learned_plan(
            network, params, attention=build_learner.make_attention(inner)
        )
    every = [layer.path for layer in network.layers]
    paths = {"sgd": every, "anil": every[-1:], "boil": every[:-1]}[inner.rule]
    return fixed_plan(network, paths, step_size=inner.learning_rate, steps=inner.steps)


def plan_costs(plan: Plan, examples: int = 1) -> Row:
    """Return layers, and the paper's model of bytes and operations, of each step."""
    network, kept = plan.architecture, plan.kept()
    memory = [
        count_memory(network, list(x), kept=kept, examples=examples).num_bytes / MB
        for x in plan.steps
    ]
    macs = [count_macs(network, list(x), kept=kept).total for x in plan.steps]
    return {
        "layers": " ".join(str(len(x)) for x in plan.steps),
        "paper_mb": sum(memory) / len(memory),
        "most_paper_mb": max(memory),
        "mmacs": sum(macs) / len(macs) / 1e6 * examples,
    }


def make_config(arguments: argparse.Namespace, rule: str, **inner: Any) -> Settings:
    """Return the configuration of an inner rule."""
    config = few_shot_config(arguments, "test", arguments.shot, QUERY, QUERY)
    config.learner, config.seed = "maml", arguments.seed
    config.inner.rule, config.inner.learned_head = rule, True
    config.inner.learning_rate = FIXED if rule in ("sgd", "anil", "boil") else START
    if arguments.smoke:  # what compiles and runs fast
        config.inner.first_order, config.inner.steps = True, 1
        config.backbone.width = 8
    config.inner.update(inner)
    config.gradient.estimator = "plain"
    config.optimizer.learning_rate = 2e-3
    config.test.tasks = arguments.tasks
    return read_settings(config, Settings)


def p_meta_config(
    arguments: argparse.Namespace,
    forward: float | None,
    backward: float | None,
    penalty: float | None = None,
) -> Settings:
    """Return the configuration of p-Meta, or of MAML++ where nothing is penalised.

    Args:
        arguments: The command's.
        forward: ρ of the attention that looks forward; None for none.
        backward: ρ of that which looks backward.
        penalty: λ; the command's by default.
    """
    sides = {
        (False, False): "none",
        (True, False): "forward",
        (False, True): "backward",
        (True, True): "both",
    }
    return make_config(
        arguments,
        "p_meta",
        penalty=arguments.penalty if penalty is None else penalty,
        penalty_on=arguments.penalty_on,
        attention=sides[forward is not None, backward is not None],
        attention_forward=forward or 0.0,
        attention_backward=backward or 0.0,
    )


def architecture_of(config: Settings, sources: build_data.Sources) -> Architecture:
    """Return the backbone's architecture, and the head's."""
    network = build_backbone.make_backbone(config.backbone)
    assert network.describe is not None
    return network.describe(sources("test").image_shape, WAY)


def train(config: Settings, learner: Learner | None = None) -> Trained:
    """Meta-train the configuration's learner, or another one on the same tasks.

    What the configuration tells all of is trained once.
    """
    name = repr(config) if learner is None else ""
    if name in _TRAINED:
        return _TRAINED[name]
    sources = build_data.make_sources(config)
    learner = learner or build_learner.make_learners(config, sources).tested
    optimizer = build_gradient.make_optimizer(
        config.optimizer, config.train.steps, learner.constraint
    )
    step = make_train_step(build_gradient.make_grad_fn(config, learner), optimizer)
    state = init_state(optimizer, build_learner.init_params(config, learner, sources))
    begun, numbers = time.perf_counter(), range(1, config.train.steps + 1)
    feed = Feed(config, sources("train"))
    for tasks in tqdm(feed.ahead(numbers), total=len(numbers), leave=False):
        state, _ = step(state, tasks, jax.random.key(config.seed))
    params = jax.block_until_ready(state.params)
    found = Trained(config, sources, learner, params, time.perf_counter() - begun)
    if name:
        _TRAINED[name] = found
    return found


_TRAINED: dict[str, Trained] = {}


# ------------------------------------------------------------------------- testing


def deployed(trained: Trained, batch_size: int = 1) -> Row:
    """Return the accuracy after adaptation by the plan, some images at a time."""
    backbone = build_backbone.make_backbone(trained.config.backbone)
    adapt = make_adapt(trained.plan(), batch_size=batch_size)

    @jax.jit
    def correct(params: Params, query: Examples) -> jax.Array:
        features = backbone.apply(params["backbone"], query.inputs)
        logits = linear_products(**params["head"], features=features)
        return (logits.argmax(1) == query.labels).mean()

    return summary(
        correct(adapt(trained.params, task.support.inputs, task.support.labels),
                task.query)
        for task in map(jax.device_put, trained.tasks)
    )  # fmt: skip


def tested(trained: Trained, chunk_size: int | None = None) -> Row:
    """Return the accuracy of the learner itself, some support images at a time."""
    score = make_scorer(trained.learner, chunk_size)
    tasks = map(jax.device_put, trained.tasks)
    return summary(score(trained.params, task) for task in tasks)


def summary(accuracies: Iterable[Any]) -> Row:
    """Return the mean, half its interval's width, and the number of tasks."""
    found = metrics.interval(float(x) for x in accuracies)
    return {
        "accuracy": found.mean,
        "half_width": found.half_width,
        "tasks": found.num_tasks,
    }


def costs(trained: Trained) -> Row:
    """Return the layers, bytes and operations of the plan, and seconds of training."""
    plan = trained.plan()
    inner, modules = inner_params(plan.architecture, trained.params)
    shape = trained.sources("test").image_shape
    support = jnp.ones((WAY, *shape), jnp.uint8), jnp.zeros(WAY, jnp.int32)
    programs = {
        choice: make_step(plan, choice).lower(inner, modules, sizes, *support)
        for choice, sizes in zip(plan.choices(), plan.steps, strict=True)
        if sizes
    }
    return plan_costs(plan) | {
        "step_mb": max(map(compiled_mb, programs.values())),
        "seconds": trained.seconds,
    }


# --------------------------------------------------------------------------- parts


def methods(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield accuracy, memory and operations of each method."""
    chosen = list(METHODS)[-1:] if arguments.smoke else list(METHODS)
    for name in [arguments.method] if arguments.method else chosen:
        trained = train(METHODS[name](arguments))
        yield {"method": name} | deployed(trained) | costs(trained)


METHODS: dict[str, Callable[[argparse.Namespace], Settings]] = {
    "MAML": lambda found: make_config(found, "sgd"),
    "ANIL": lambda found: make_config(found, "anil"),
    "BOIL": lambda found: make_config(found, "boil"),
    "MAML++": lambda found: p_meta_config(found, None, None, penalty=0.0),
    "p-Meta, steps only": lambda found: p_meta_config(found, None, None),
    "p-Meta": lambda found: p_meta_config(found, 0.3, 0.0),
}


def scores(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield what attention does, by side and ratio, and steps of static channels."""
    ratios: Sequence[tuple[float | None, float | None]] = (
        (None, None), (0.0, None), (None, 0.0), (0.0, 0.0), (0.0, 0.3), (0.3, 0.0),
        (0.3, 0.3), (0.5, 0.5),
    )  # fmt: skip
    for forward, backward in ratios[:0] if arguments.smoke else ratios:
        trained = train(p_meta_config(arguments, forward, backward))
        yield {"forward": forward, "backward": backward} | deployed(trained)
    config = make_config(arguments, "learned_sgd")
    sources = build_data.make_sources(config)
    rule = channel_steps(config.inner.learning_rate, architecture_of(config, sources))
    yield {"channels": "static"} | tested(train(config, with_rule(config, rule)))


def batches(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield p-Meta's accuracy by how many images it looks at together."""
    trained = train(p_meta_config(arguments, 0.3, 0.0))
    for size in [1] if arguments.smoke else sorted({1, WAY, WAY * arguments.shot}):
        yield {"batch": size} | deployed(trained, size)


def passed(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield what happens where scores multiply what layers pass on."""
    chosen = {
        "nothing": None,
        "x": Attention(0.3, None),
        "g(y)": Attention(None, 0.3),
    }
    for name in list(chosen)[-1:] if arguments.smoke else chosen:
        config, attention = p_meta_config(arguments, None, None), chosen[name]
        rule = build_learner.make_inner_rule(config.inner)
        if attention is not None:
            rule = passed_on(rule, attention)
        yield {"sparse": name} | tested(train(config, with_rule(config, rule)))


def networks(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield MAML's accuracy by pool and norm, tested on one image at a time or all."""
    cases = [(pool, norm) for pool in POOLS for norm in ("batch", "group")]
    for pool, norm in cases[:1] if arguments.smoke else cases:
        config = make_config(arguments, "sgd")
        rule = build_learner.make_inner_rule(config.inner)
        trained = train(config, with_rule(config, rule, conv4_with(pool, norm)))
        for chunk_size, images in ((1, "one by one"), (None, "at once")):
            row = {"pool": pool, "norm": norm, "images": images}
            yield row | tested(trained, chunk_size)


def with_rule(
    config: Settings, rule: InnerRule, backbone: Network | None = None
) -> Learner:
    """Return MAML with a rule that no configuration names."""
    backbone = backbone or build_backbone.make_backbone(config.backbone)
    steps = config.inner.steps
    return maml(backbone, way=WAY, steps=steps, rule=rule, learned_head=True)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "methods": methods,
    "scores": scores,
    "batch": batches,
    "passed on": passed,
    "network": networks,
}

if __name__ == "__main__":
    main()
