"""MRML with LITE: a head solved for each task, features by its implicit gradient.

Paper    Yang, Ma and Yu 2025 (the learner); Bronskill et al. 2021 (sampling of it)
Command  python -m lite_jax.main --config=configs/mrml.py[:VARIANT[,VARIANT]]

digits     (default) Conv-4 on turned even digits; 100 inner steps, as long as the
           curvature allows, 10 of conjugate gradients, weight decay 1e-2
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2
folder     --config.data.root=FOLDER of class folders of photographs, at 84 pixels
synthetic  procedural images; no data needed
itd        through 20 inner steps at 0.1, with cached features (ITD-BiO); combines with
           the above, as do the next two
identity   the inner Hessian taken for the identity
learned    the head's start is learned too
smoke      a few steps and tasks, to see that everything runs; combines with the above
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/mrml.py:ARGUMENTS` names."""
    variants = recipes.VARIANTS | {
        "itd": itd,
        "identity": identity,
        "learned": learned,
    }
    return recipes.choose(arguments, variants, start=mrml)


def mrml(config):
    """Choose the learner."""
    config.name = config.learner = "mrml"
    config.inner.steps = 100  # they keep nothing
    config.inner.learning_rate = 0.1  # at most


def itd(config):
    """Differentiate the inner steps."""
    config.hypergrad.through = "unrolled"
    config.inner.steps = 20


def identity(config):
    """Leave the inner Hessian out."""
    config.hypergrad.through = "identity"


def learned(config):
    """Learn the head's start."""
    config.inner.learned_head = True
