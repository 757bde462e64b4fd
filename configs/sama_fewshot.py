"""SAMA for few-shot tasks: the start of a network that Adam adapts.

Paper    Choe et al. 2023
Command  python -m lite_jax.main --config=configs/sama_fewshot.py[:VARIANT[,VARIANT]]

digits        (default) Conv-4 on turned even digits; 16 steps of Adam at 0.01, kept
              near the start with proximity 1
omniglot      --config.data.root=FOLDER that holds images_background_small1 and _small2
folder        --config.data.root=FOLDER of class folders of photographs, at 84 pixels
synthetic     procedural images; no data needed
unadapted     Adam's update is not derived (SAMA-NA); combines with the above
smoke         a few steps and tasks, to see that everything runs; combines, too
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration of `--config=configs/sama_fewshot.py:ARGUMENTS`."""
    variants = recipes.VARIANTS | {"unadapted": unadapted}
    return recipes.choose(arguments, variants, start=sama_fewshot)


def sama_fewshot(config):
    """Choose the learner, and Adam within it."""
    config.name, config.learner = "sama_fewshot", "imaml"
    config.gradient.estimator = "exact"  # sums enter by their values alone
    config.inner.optimizer = "adam"
    config.inner.steps = 16
    config.inner.learning_rate = 0.01
    config.hypergrad.through = "sama"


def unadapted(config):
    """Take the optimiser's derivative for the identity, too."""
    config.hypergrad.through = "identity"
