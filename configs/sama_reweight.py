"""SAMA on noisy labels: a weight for every training example, learned on a clean few.

Paper    Choe et al. 2023; Shu et al. 2019 (Meta-Weight-Net)
Command  python -m lite_jax.main --config=configs/sama_reweight.py[:VARIANT[,VARIANT]]

digits       (default) scikit-learn's digits, 1000 with 40 % of the labels wrong, 50
             clean ones, a perceptron trained by Adam
text         generated texts of four classes, 4000 with 40 % of the labels wrong, a
             small transformer
tsv          --config.data.root=FOLDER of train.tsv, meta.tsv and test.tsv, a line
             label<TAB>text a text; noise is added where --config.reweight.noise says
bert_base    texts by a transformer of 12 blocks of 768, sequences of 128 words, for a
             GPU; after text or tsv
omniglot     features of --config.data.root=FOLDER that holds images_background_small1
folder       features of --config.data.root=FOLDER of class folders of photographs; both
             take --config.backbone.weights=FILE (configs/pretrain.py makes some)
per_example  a weight for each example in place of Meta-Weight-Net
unadapted    without the derivative of Adam's update (SAMA-NA, T1-T2)
cg, neumann  with the inverse of the inner Hessian: 5 iterations, damped; 5 terms
smoke        a few rounds, to see that everything runs; combines with the above
"""

from lite_jax.apps.reweight import settings
from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration of `--config=configs/sama_reweight.py:ARGUMENTS`."""
    variants = {
        "digits": recipes.digits,
        "text": settings.text,
        "tsv": settings.tsv,
        "bert_base": settings.bert_base,
        "omniglot": settings.omniglot_features,
        "folder": settings.folder_features,
        "per_example": settings.per_example_weights,
        "unadapted": unadapted,
        "cg": cg,
        "neumann": neumann,
        "smoke": settings.shrink,
    }
    schema = settings.reweighting_config
    return recipes.choose(arguments, variants, sama_reweight, schema)


def sama_reweight(config):
    """Choose the job, and SAMA."""
    config.name, config.reweight.job = "sama_reweight", "reweight"
    config.reweight.noise = 0.4


def unadapted(config):
    """Leave the optimiser's derivative out."""
    config.hypergrad.through = "identity"


def cg(config):
    """Solve with the inner Hessian, damped: a batch's has flat directions."""
    config.hypergrad.through = "conjugate_gradient"
    config.hypergrad.steps = 5
    config.hypergrad.damping = 1.0


def neumann(config):
    """Take the series."""
    config.hypergrad.through = "neumann"
    config.hypergrad.steps = 5
