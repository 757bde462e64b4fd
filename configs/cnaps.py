"""CNAPs with LITE: a frozen backbone; FiLM and a linear head from the support set.

Paper    Requeima et al. 2019 (the learner); Bronskill et al. 2021, §3.1 (its gradient)
Command  python -m lite_jax.main --config=configs/cnaps.py[:VARIANT,…]
         --config.backbone.weights=WEIGHTS
Weights  of the frozen backbone; configs/pretrain.py makes some for each variant.
         Without, the backbone stays at its random initialisation, and a warning says so

digits     (default) Conv-4 on turned even digits
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2
folder     --config.data.root=FOLDER of class folders of photographs; ResNet-18 with
           GroupNorm at 84 pixels
paper      --config.data.root=FOLDER of class folders; EfficientNet-B0 at 224 pixels
           and the paper's recipe (lite_jax.run.recipes.paper); for one GPU, as are the
           next three; not run here
meta_dataset   --config.data.root=RECORDS of Meta-Dataset; the recipe on the sources of
           the paper's code; --mode=eval: 600 tasks of each test source
vtab_md    the same, and --mode=eval also runs VTAB's 18 tasks, with
           --config.benchmark.vtab_root=FOLDER
orbit      --config.data.root=orbit_benchmark_224; --mode=eval: ORBIT's test users
synthetic  procedural images; no data needed
smoke      a few steps and tasks, to see that everything runs; combines with the above
"""

from lite_jax.run import recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/cnaps.py:ARGUMENTS` names."""
    variants = {
        **recipes.VARIANTS,
        **recipes.RECIPES,
        "folder": recipes.folder_resnet18,
    }
    return recipes.choose(arguments, variants, start=cnaps)


def cnaps(config):
    """Choose the learner, on a frozen backbone."""
    config.name = config.learner = "cnaps"
    config.backbone.frozen = True
