"""iMAML: the whole network kept near a learned start, by its implicit gradient.

Paper    Rajeswaran et al. 2019
Command  python -m lite_jax.main --config=configs/imaml.py[:VARIANT[,VARIANT]]

digits      (default) Conv-4 on turned even digits; 16 steps at 0.05, 5 of conjugate
            gradients, proximity 1
omniglot    --config.data.root=FOLDER that holds images_background_small1 and _small2
folder      --config.data.root=FOLDER of class folders of photographs, at 84 pixels
synthetic   procedural images; no data needed
neumann     the Neumann series in place of conjugate gradients
identity    the inverse left out; combines with the above
smoke       a few steps and tasks, to see that everything runs; combines with the above
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/imaml.py:ARGUMENTS` names."""
    variants = recipes.VARIANTS | {
        "neumann": neumann,
        "identity": identity,
    }
    return recipes.choose(arguments, variants, start=imaml)


def imaml(config):
    """Choose the learner."""
    config.name = config.learner = "imaml"
    config.gradient.estimator = "exact"  # sums enter by their values alone
    config.inner.steps = 16
    config.inner.learning_rate = 0.05
    config.hypergrad.steps = 5


def neumann(config):
    """Solve by the series."""
    config.hypergrad.through = "neumann"


def identity(config):
    """Leave the inverse out."""
    config.hypergrad.through = "identity"
