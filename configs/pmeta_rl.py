"""p-Meta's reinforcement learning: policies that adapt by one policy-gradient step.

Paper    Qu, Zhou, Thiele, "p-Meta: Towards On-device Deep Model Adaptation", KDD 2022,
         §5.3; tasks and settings are those of Finn, Abbeel, Levine, ICML 2017
Command  python -m lite_jax.main --config=configs/pmeta_rl.py[:VARIANT[,VARIANT]]

navigation    (default) a point walks to a goal that it does not see; pure JAX
half_cheetah  a cheetah runs at a velocity that it is not told; needs the extra `rl`
maml, anil, boil, mamlpp, steps_only
              other inner rules in p-Meta's place: fixed steps of the whole policy, its
              head or its body; learned step sizes; sparse ones without meta attention
small         10 tasks and 10 episodes a step, 100 steps an episode, 100 updates:
              minutes on a CPU; combines with the above, as does the next one
smoke         a few steps and tasks, to see that everything runs

The paper's settings: an MLP of two layers of 100 units, 20 episodes of 200 steps of
each task before adaptation and after, 20 tasks a step (40 of the cheetah), 500 steps of
trust-region policy optimisation, tests on 400 tasks.
"""

from lite_jax.apps.rl import settings
from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/pmeta_rl.py:ARGUMENTS` names."""
    variants = {
        "navigation": navigation,
        "half_cheetah": half_cheetah,
        "maml": maml,
        "anil": anil,
        "boil": boil,
        "mamlpp": mamlpp,
        "steps_only": steps_only,
        "small": small,
        "smoke": settings.shrink,
    }
    return recipes.choose(arguments, variants, pmeta_rl, settings.policy_config)


def pmeta_rl(config):
    """Choose the rule, and the paper's sizes."""
    config.name = "pmeta_rl"
    config.rl.environment = "navigation"
    config.inner.rule = "p_meta"
    config.inner.steps = 1
    config.inner.learning_rate = 0.1  # at first, where it is learned
    config.inner.penalty = 0.1
    config.inner.attention_over = "example"  # an episode
    config.train.tasks_per_step = 20
    config.train.steps = 500
    config.train.valid_every = 20
    config.test.tasks = 400


def navigation(config):
    """Walk to a goal."""
    config.rl.environment = "navigation"


def half_cheetah(config):
    """Run at a velocity."""
    config.rl.environment = "half_cheetah"
    config.train.tasks_per_step = 40


def maml(config):
    """Adapt everything by one fixed step size."""
    config.inner.rule = "sgd"


def anil(config):
    """Adapt the head alone."""
    config.inner.rule = "anil"


def boil(config):
    """Adapt all but the head."""
    config.inner.rule = "boil"


def mamlpp(config):
    """Learn the step sizes, and keep them as they come."""
    config.inner.attention, config.inner.penalty = "none", 0.0


def steps_only(config):
    """Leave meta attention out (the paper's §3.2)."""
    config.inner.attention = "none"


def small(config):
    """Take fewer and shorter episodes."""
    config.train.tasks_per_step = 10
    config.rl.episodes, config.rl.horizon = 10, 100
    config.train.steps = 100
