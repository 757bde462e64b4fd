"""MAML with LITE: every inner step exact, H of its N gradients back-propagated.

Paper    Finn et al. 2017 (the learner); Bronskill et al. 2021, eq. 3 (its gradient)
Command  python -m lite_jax.main --config=configs/maml.py[:VARIANT[,VARIANT]]

digits     (default) Conv-4 on turned even digits
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2
folder     --config.data.root=FOLDER of class folders of photographs, at 84 pixels
synthetic  procedural images; no data needed
anil       inner steps on the head alone; combines with the above, as do the next three
boil       inner steps on the body alone, from a learned head
mamlpp     a learned step size for each tensor and step (MAML++)
fomaml     first order: inner gradients are constants, and the gradient is exact
smoke      a few steps and tasks, to see that everything runs; combines with the above
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/maml.py:ARGUMENTS` names."""
    variants = recipes.VARIANTS | {
        "anil": anil,
        "boil": boil,
        "mamlpp": mamlpp,
        "fomaml": fomaml,
    }
    return recipes.choose(arguments, variants, start=maml)


def maml(config):
    """Choose the learner, with steps large enough for a head that starts at 0."""
    config.name = config.learner = "maml"
    config.inner.steps = 5
    config.inner.learning_rate = 0.1


def anil(config):
    """Adapt the head alone."""
    config.inner.rule = "anil"


def boil(config):
    """Adapt the body alone."""
    config.inner.rule = "boil"
    config.inner.learned_head = True


def mamlpp(config):
    """Learn the step sizes."""
    config.inner.rule = "learned_sgd"


def fomaml(config):
    """Treat inner gradients as constants."""
    config.inner.first_order = True
