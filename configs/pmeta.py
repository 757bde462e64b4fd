"""p-Meta: which layers and channels an inner step changes is learned, and kept sparse.

Paper    Qu, Zhou, Thiele, "p-Meta: Towards On-device Deep Model Adaptation", KDD 2022
Command  python -m lite_jax.main --config=configs/pmeta.py[:VARIANT[,VARIANT]]

digits     (default) Conv-4 on turned even digits
omniglot   --config.data.root=FOLDER that holds images_background_small1 and _small2
folder     --config.data.root=FOLDER of class folders of photographs, at 84 pixels
synthetic  procedural images; no data needed
shot1      5-way 1-shot; the default is 5-way 5-shot; combines with the above, as do
           the next ones
resnet12   ResNet-12 of 64, 128, 256 and 512 channels in Conv-4's place
steps_only sparse step sizes without meta attention
mamlpp     neither: one learned step size a layer and step
lean       a larger λ, on all the memory that training a layer takes: on small images
           one to three layers of nine remain
each       attention over single examples, as on the device; any estimator serves
smoke      a few steps and tasks, to see that everything runs; combines with the above

The paper's settings: 100 × 1000 tasks, four a step, K = 5, α = 0.01, λ = 0.001,
ρ = 0.3 forward and 0 backward, Conv-4 of 32 channels. The variants of photographs take
them; the small data sets take fewer tasks.
"""

from lite_jax.run import configs, recipes


def get_config(arguments=""):
    """Return the configuration that `--config=configs/pmeta.py:ARGUMENTS` names."""
    variants = recipes.VARIANTS | {
        "omniglot": omniglot,
        "folder": folder,
        "shot1": shot1,
        "resnet12": resnet12,
        "steps_only": steps_only,
        "mamlpp": mamlpp,
        "lean": lean,
        "each": each,
    }
    return recipes.choose(arguments, variants, start=pmeta)


def pmeta(config):
    """Choose the learner and the rule."""
    config.name, config.learner = "pmeta", "maml"
    config.backbone.width = 32
    config.inner.rule = "p_meta"
    config.inner.steps = 5
    config.inner.learning_rate = 0.02  # at first
    config.inner.learned_head = True
    config.gradient.estimator, config.gradient.chunk_size = "plain", 100
    config.optimizer.learning_rate = 2e-3
    config.train.steps, config.train.tasks_per_step = 300, 2
    few_shot(config, shot=5)


def omniglot(config):
    """Use Omniglot's small sets."""
    recipes.omniglot(config)
    config.gradient.chunk_size = 100
    few_shot(config, shot=5, query=10)  # there are 20 drawings of a character


def folder(config):
    """Use photographs at 84 pixels."""
    recipes.folder(config)
    config.gradient.chunk_size = 100
    few_shot(config, shot=5)


def few_shot(config, shot, query=15):
    """Train, validate and test on 5 ways."""
    spec = configs.episode((5, 5), (shot, shot), query=query)
    config.train.episode = config.valid.episode = spec
    config.test.episodes = type(config.test.episodes)({f"w5s{shot}": spec})


def shot1(config):
    """Train and test with one example a class."""
    few_shot(config, shot=1)


def resnet12(config):
    """Choose the paper's larger network."""
    config.backbone.name = "resnet12_512"


def steps_only(config):
    """Leave meta attention out (the paper's §3.2)."""
    config.inner.attention = "none"


def mamlpp(config):
    """Learn the step sizes, and keep them as they come."""
    config.inner.attention, config.inner.penalty = "none", 0.0


def lean(config):
    """Weigh the gradients of weights as well, and all of it more."""
    config.inner.penalty, config.inner.penalty_on = 10.0, "memory"


def each(config):
    """Look at single examples."""
    config.inner.attention_over = "example"
    config.gradient.estimator = "exact"
