"""Prototypical networks with LITE: Conv-4 with GroupNorm, squared Euclidean.

Paper    Snell et al. 2017 (the learner); Bronskill et al. 2021 (its gradient, eq. 4)
Command  python -m lite_jax.main --config=configs/protonets.py[:VARIANT[,VARIANT]]

digits     (default) 10-way 5-shot training on turned even digits; test on the odd ones
           69.5 ± 0.7 % (5-way 1-shot), 88.8 ± 0.3 % (5-way 5-shot); 2 minutes
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2;
           train on small1, test on the alphabets of small2 that small1 lacks
           83.2 ± 0.4 % (20-way 1-shot), 98.3 ± 0.2 % (5-way 5-shot); 16 minutes
folder     --config.data.root=FOLDER of class folders of photographs, at 84 pixels
           Caltech101, 40 training classes: 38.3 ± 0.6 % (5-way 1-shot),
           57.9 ± 0.6 % (5-way 5-shot); 19 minutes
paper      --config.data.root=FOLDER of class folders; EfficientNet-B0 at 224 pixels
           and the paper's recipe (lite_jax.run.recipes.paper); for one GPU, as are the
           next three; not run here
meta_dataset   --config.data.root=RECORDS of Meta-Dataset; the recipe on the sources of
           the paper's code; --mode=eval: 600 tasks of each test source
vtab_md    the same, and --mode=eval also runs VTAB's 18 tasks, with
           --config.benchmark.vtab_root=FOLDER
orbit      --config.data.root=orbit_benchmark_224; --mode=eval: ORBIT's test users
synthetic  procedural images; no data needed
resnet18   that backbone instead; combines with the above
smoke      a few steps and tasks, to see that everything runs; combines with the above

Accuracy on 600 test tasks with its 95 % interval, one seed, by uniform draws; time on
two CPU cores.
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/protonets.py:ARGUMENTS` names."""
    variants = {
        **recipes.VARIANTS,
        **recipes.RECIPES,
        "omniglot": omniglot,
        "resnet18": recipes.resnet18,
    }
    return recipes.choose(arguments, variants)


def omniglot(config):
    """Train for longer than the digits need."""
    recipes.omniglot(config)
    config.train.steps = 4000
    config.train.valid_every = 500
