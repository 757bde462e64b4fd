"""Fine-tuning, the transfer baseline: a linear head trained at test time.

Paper    Bronskill et al. 2021, §5 (the baseline); 50 steps of SGD at 0.1
Command  python -m lite_jax.main --config=configs/finetune.py[:VARIANT,…]
         --config.backbone.weights=WEIGHTS
Weights  of the frozen backbone; configs/pretrain.py makes some for each variant

Nothing is meta-learned: a run takes no training steps, and tests.

digits     (default) Conv-4
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2
folder     --config.data.root=FOLDER of class folders of photographs; ResNet-18 with
           GroupNorm at 84 pixels
           Caltech101, 40 training classes, with configs/pretrain.py:folder,
           36.5 ± 0.9 % (5-way 1-shot), 48.0 ± 0.9 % (5-way 5-shot), as
           experiments/learners.py measures it
synthetic  procedural images; no data needed
film       train FiLM parameters beside the head; combines with the above
smoke      a few tasks, to see that everything runs; combines with the above
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/finetune.py:ARGUMENTS` names."""
    variants = recipes.VARIANTS | {
        "folder": recipes.folder_resnet18,
        "film": film,
    }
    config = recipes.choose(arguments, variants, start=finetune)
    with config.unlocked():
        config.train.steps = 0
    return config


def finetune(config):
    """Choose the learner, on a frozen backbone."""
    config.name, config.learner = "finetune", "finetuner"
    config.backbone.frozen = True
    config.inner.steps = 50
    config.inner.learning_rate = 0.1


def film(config):
    """Train FiLM parameters too, by Adam."""
    config.inner.film = True
    config.inner.optimizer = "adam"
    config.inner.learning_rate = 0.01
