"""SAMA prunes data: what is kept is what learned weights call important.

Paper    Choe et al. 2023; Paul et al. 2021 (EL2N, GraNd)
Command  python -m lite_jax.main --config=configs/sama_prune.py[:VARIANT[,VARIANT]]

Keeps 90, 70 and 50 % of the training set by learned weight, at random, and by loss,
EL2N and GraNd, hardest or easiest first; trains three networks on each.

digits       (default) scikit-learn's digits, labels as they are, 50 clean ones
noisy        20 % of the labels wrong
text         generated texts of four classes, a small transformer
tsv          --config.data.root=FOLDER of train.tsv, meta.tsv and test.tsv
omniglot     features of --config.data.root=FOLDER that holds images_background_small1
folder       features of --config.data.root=FOLDER of class folders of photographs
per_example  a weight for each example, in place of Meta-Weight-Net
smoke        a few rounds, to see that everything runs; combines with the above
"""

from lite_jax.apps.reweight import settings
from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration of `--config=configs/sama_prune.py:ARGUMENTS`."""
    variants = {
        "digits": recipes.digits,
        "noisy": noisy,
        "text": settings.text,
        "tsv": settings.tsv,
        "omniglot": settings.omniglot_features,
        "folder": settings.folder_features,
        "per_example": settings.per_example_weights,
        "smoke": settings.shrink,
    }
    schema = settings.reweighting_config
    return recipes.choose(arguments, variants, sama_prune, schema)


def sama_prune(config):
    """Choose the job, and SAMA."""
    config.name, config.reweight.job = "sama_prune", "prune"


def noisy(config):
    """Move some labels."""
    config.reweight.noise = 0.2
