"""Prototypical networks with LITE: Conv-4 with GroupNorm, squared Euclidean.

Paper    Snell et al. 2017 (the learner); Bronskill et al. 2021 (its gradient, eq. 4)
Command  python -m lite_jax.main --config=configs/protonets.py[:VARIANT[,VARIANT]]

digits     (default) 10-way 5-shot training on turned even digits; test on the odd ones
           69.5 ± 0.7 % (5-way 1-shot), 88.8 ± 0.3 % (5-way 5-shot); 2 minutes
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2;
           train on small1, test on the alphabets of small2 that small1 lacks
           83.7 ± 0.4 % (20-way 1-shot), 98.4 ± 0.2 % (5-way 5-shot); 19 minutes
folder     --config.data.root=FOLDER of class folders of photographs, at 84 pixels
           Caltech101, 40 training classes: 38.0 ± 0.6 % (5-way 1-shot),
           55.5 ± 0.6 % (5-way 5-shot); 20 minutes
synthetic  procedural images; no data needed
smoke      a few steps and tasks, to see that everything runs; combines with the above

Accuracy on 600 test tasks with its 95 % interval, one seed; time on two CPU cores.
"""

from lite_jax.defaults import choose, episode


def get_config(arguments=""):
    """Return the configuration that `--config=configs/protonets.py:ARGUMENTS` names."""
    variants = {
        "digits": digits,
        "omniglot": omniglot,
        "folder": folder,
        "synthetic": synthetic,
        "smoke": smoke,
    }
    return choose(arguments, variants)


def digits(config):
    """Keep the defaults."""
    config.name = "protonets_digits"


def omniglot(config):
    """Train at 60-way 1-shot, H = 20, on turned characters of the small sets."""
    config.name = "protonets_omniglot"
    config.data.dataset = "omniglot"
    config.data.image_size = 28
    config.data.affine = True
    config.backbone.mean, config.backbone.std = 0.0, 1.0
    config.gradient.num_backprop = 20
    config.gradient.chunk_size = 20
    config.train.steps = 4000
    config.train.valid_every = 500
    config.train.episode = episode(way=(60, 60), shot=(1, 1), query=3)
    config.valid.episode = episode(way=(20, 20), shot=(1, 1), query=5)
    config.test.episodes.w5s5 = episode(way=(5, 5), shot=(5, 5), query=15)
    config.test.episodes.w20s1 = episode(way=(20, 20), shot=(1, 1), query=5)


def folder(config):
    """Train on folders of photographs at 84 pixels."""
    config.name = "protonets_folder"
    config.data.dataset = "folder"
    config.data.image_size = 84
    config.data.rotations = False
    config.gradient.chunk_size = 20
    config.train.steps = 400
    config.train.episode = episode(way=(10, 10), shot=(5, 5), query=5)


def synthetic(config):
    """Train on procedural images."""
    config.name = "protonets_synthetic"
    config.data.dataset = "synthetic"
    config.data.image_size = 28


def smoke(config):
    """Shrink whatever was chosen to seconds."""
    config.name += "_smoke"
    config.train.steps = 4
    config.train.valid_every = 2
    config.valid.tasks = 4
    config.test.tasks = 10
