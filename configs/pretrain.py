"""Ordinary supervised pretraining of a backbone, without a download.

Method   Cross-entropy over all training classes, AdamW, batches of 64. Validated and
         tested as nearest prototypes of the features (5-way 1-shot and 5-shot)
Command  python -m lite_jax.main --config=configs/pretrain.py[:VARIANT[,VARIANT]]
Result   runs/pretrain_…/backbone.safetensors, which other configs take as
         --config.backbone.weights=runs/pretrain_…/backbone.safetensors

digits     (default) Conv-4 on turned even digits
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2
folder     --config.data.root=FOLDER of class folders of photographs; ResNet-18 with
           GroupNorm at 84 pixels, random crops
           Caltech101, 40 training classes: 36.9 ± 0.9 % (5-way 1-shot),
           49.0 ± 1.0 % (5-way 5-shot) with 5 query images a class; about
           30 minutes on two idle CPU cores
synthetic  procedural images; no data needed
smoke      a few steps and tasks, to see that everything runs; combines with the above
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/pretrain.py:ARGUMENTS` names."""
    variants = recipes.VARIANTS | {
        "folder": folder,
    }
    return recipes.choose(arguments, variants, start=pretrain)


def pretrain(config):
    """Turn the defaults into supervised training."""
    config.name, config.learner = "pretrain", "classifier"
    config.gradient.estimator = "plain"
    config.optimizer.weight_decay = 0.05
    config.train.steps = 400


def folder(config):
    """Train ResNet-18 on photographs."""
    recipes.folder_resnet18(config)
    config.data.augment = "crop"
    config.train.steps = 1200
    config.train.valid_every = 100
