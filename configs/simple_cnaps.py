"""Simple CNAPs with LITE: a frozen backbone, generated FiLM, Mahalanobis distances.

Paper    Bateni et al. 2020 (the learner); Bronskill et al. 2021, §3.1 (its gradient)
Command  python -m lite_jax.main --config=configs/simple_cnaps.py[:VARIANT,…]
         --config.backbone.weights=WEIGHTS
Weights  of the frozen backbone; configs/pretrain.py makes some for each variant.
         Without, the backbone stays at its random initialisation, and a warning says so

digits     (default) Conv-4 on turned even digits
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2
folder     --config.data.root=FOLDER of class folders of photographs; ResNet-18 with
           GroupNorm at 84 pixels
           Caltech101, 40 training classes, with configs/pretrain.py:folder, after 200
           steps, 35.0 ± 0.9 % (5-way 1-shot), 45.8 ± 0.9 % (5-way 5-shot), as
           experiments/learners.py measures it
paper      --config.data.root=FOLDER of class folders; EfficientNet-B0 at 224 pixels
           and the paper's recipe (lite_jax.run.recipes.paper); for one GPU, as are the
           next three; not run here
meta_dataset   --config.data.root=RECORDS of Meta-Dataset; the recipe on the sources of
           the paper's code; --mode=eval: 600 tasks of each test source
vtab_md    the same, and --mode=eval also runs VTAB's 18 tasks, with
           --config.benchmark.vtab_root=FOLDER; the paper reports 51.4 % on VTAB
orbit      --config.data.root=orbit_benchmark_224; --mode=eval: ORBIT's test users
synthetic  procedural images; no data needed
smoke      a few steps and tasks, to see that everything runs; combines with the above
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return what `--config=configs/simple_cnaps.py:ARGUMENTS` names."""
    variants = {
        **recipes.VARIANTS,
        **recipes.RECIPES,
        "folder": recipes.folder_resnet18,
    }
    return recipes.choose(arguments, variants, start=simple_cnaps)


def simple_cnaps(config):
    """Choose the learner, on a frozen backbone."""
    config.name = config.learner = "simple_cnaps"
    config.backbone.frozen = True
