"""The settings of meta-learning runs, their types and defaults.

A class is a section of the configuration, and a field is a setting: every one is a flag
`--config.SECTION.FIELD`. Programs with other settings combine these classes anew
(`lite_jax.apps`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from lite_jax.data.settings import DataSettings


@dataclass(frozen=True)
class EpisodeSettings:
    """One kind of episode."""

    way: tuple[int, ...] = (5, 5)  # least and most classes of a task
    shot: tuple[int, ...] = (1, 1)  # least and most support images of a class
    query: int = 10  # query images of a class
    max_support: int | None = None  # most support images of a task; None: no limit


@dataclass(frozen=True)
class VariableEpisodeSettings:
    """Meta-Dataset's episodes, with variable way and shot."""

    way: tuple[int, ...] = (5, 50)  # least and most classes of a task
    max_query: int = 10  # most query images of a class
    max_support: int = 500  # most support images of a task
    max_contribution: int = 100  # most images a class counts for in the support's size


@dataclass(frozen=True)
class OrbitEpisodeSettings:
    """ORBIT's training tasks."""

    way: tuple[int, ...] = (2, 15)  # least and most objects of a user
    max_support: int = 500  # most context clips
    max_target: int = 500  # most target clips


AnyEpisode = EpisodeSettings | VariableEpisodeSettings | OrbitEpisodeSettings


@dataclass(frozen=True)
class TaskDataSettings(DataSettings):
    """A data set, and how tasks of it are drawn and loaded."""

    rotations: bool = True  # add rotated training classes: 90°, 180°, 270°
    # training images: none, or of affine, crop, flip, jitter, as NAME,NAME
    augment: str = "none"
    prefetch: int = 3  # episodes loaded ahead of the device
    workers: int = 0  # threads that decode images; 0: one for each core


@dataclass(frozen=True)
class BackboneSettings:
    """The feature extractor."""

    # conv4 | resnet12 | resnet18 | resnet50 | efficientnet_b0 | tf_efficientnet_b0 |
    # vit_s | pixels
    name: str = "conv4"
    width: int = 64  # conv4: channels of every block
    norm: str = "group"  # group | batch (frozen statistics of the weights)
    norm_groups: int = 8  # must divide the width
    # of pixels in [0, 1]; None: those of the weights, or of the backbone
    mean: float | None = None
    std: float | None = None
    weights: str = ""  # safetensors file, its folder, or hub:NAME; "": random
    frozen: bool = False  # do not train it, and store nothing for its gradient
    dtype: str = "float32"  # float32 | bfloat16; parameters stay float32
    remat: bool = False  # store block boundaries only, rematerialise the rest


@dataclass(frozen=True)
class ProtonetsSettings:
    """ProtoNets."""

    scale: float = 1.0  # multiplies distances; lower for pretrained weights


@dataclass(frozen=True)
class CnapsSettings:
    """CNAPs and Simple CNAPs."""

    film_penalty: float = 1e-3  # weight of squared FiLM amplitudes in the loss


@dataclass(frozen=True)
class InnerStepSettings:
    """Steps of an inner loop."""

    steps: int = 5
    learning_rate: float = 0.01


@dataclass(frozen=True)
class InnerRuleSettings(InnerStepSettings):
    """The update rule of MAML's inner loop."""

    rule: str = "sgd"  # sgd | learned_sgd | anil | boil | p_meta
    # p_meta: λ, weight in the loss of Σ step size × layer size
    penalty: float = 1.0
    # p_meta: what a layer's size counts: inputs | memory (inputs and the gradients of
    # weights)
    penalty_on: str = "inputs"
    attention: str = "both"  # p_meta: none | forward | backward | both
    # p_meta: share of the scores that each attention sets to 0, in [0, 1)
    attention_forward: float = 0.3
    attention_backward: float = 0.0
    # p_meta: choose channels for the support as a batch | each example
    attention_over: str = "batch"
    # p_meta: gradient through norms, from most to least memory:
    # exact | bfloat16 | detached
    norm_gradient: Literal["exact", "bfloat16", "detached"] = "exact"


@dataclass(frozen=True)
class InnerOptimizerSettings(InnerStepSettings):
    """The optimiser of an inner loop."""

    optimizer: str = "sgd"  # sgd | adam


@dataclass(frozen=True)
class InnerSettings(InnerRuleSettings, InnerOptimizerSettings):
    """The inner loop of maml (rule), finetuner and imaml (optimizer), and mrml."""

    first_order: bool = False  # maml: treat inner gradients as constants
    # maml, mrml, imaml: learn the head's start; False: it starts at 0
    learned_head: bool = False
    film: bool = False  # maml, finetuner: adapt FiLM parameters too


@dataclass(frozen=True)
class EstimatorSettings:
    """An estimator of hypergradients."""

    # conjugate_gradient | neumann | identity | sama (not mrml) | unrolled (mrml)
    through: str = "conjugate_gradient"
    steps: int = 10  # iterations of conjugate gradients, or terms of Neumann
    damping: float = 0.0  # added to the inner Hessian


@dataclass(frozen=True)
class HypergradSettings(EstimatorSettings):
    """The inner problem of mrml and imaml, and how it is differentiated."""

    weight_decay: float = 1e-2  # mrml: λ of the head's loss, λ/2 ‖head‖²
    proximity: float = 1.0  # imaml: β of the inner loss, β/2 ‖φ − θ‖²


@dataclass(frozen=True)
class GradientSettings:
    """How the gradient of a task is computed."""

    # lite | exact (chunks rematerialised) | plain (no chunks) | subsample
    estimator: str = "lite"
    num_backprop: int = 20  # H of lite and subsample; lower: faster, noisier
    # images computed at once, or auto: the most that fit the memory budget; changes
    # memory, never results
    chunk_size: int | str = 50
    # of chunk_size=auto, in 10⁹ bytes; 0: 0.9 of the device's memory
    memory_budget_gb: float = 0.0
    # stratified | uniform | with_replacement | sensitivity | stratified_sensitivity
    sampling: str = "stratified"


@dataclass(frozen=True)
class DeviceSettings:
    """The mesh of devices; the product is their number."""

    tasks: int = 1  # groups of devices, each with its share of a step's tasks
    examples: int = 1  # devices that share the examples of each task


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimiser of the meta-parameters."""

    learning_rate: float = 1e-3  # of Adam
    weight_decay: float = 0.0  # decoupled, as in AdamW
    schedule: str = "cosine"  # cosine (to 0 at the last step) | constant
    clip_norm: float = 0.0  # largest global norm of a gradient; 0: no clipping
    # steps in a row that are skipped where the gradient is not finite
    skip_not_finite: int = 0


@dataclass(frozen=True)
class TrainSettings:
    """Meta-training."""

    steps: int = 200  # parameter updates; 0: test the initial parameters
    tasks_per_step: int = 1  # tasks whose gradients are averaged
    batch_size: int = 64  # images; learner=classifier trains on batches
    valid_every: int = 100  # steps between validations and checkpoints
    episode: AnyEpisode = EpisodeSettings(way=(10, 10), shot=(5, 5))


@dataclass(frozen=True)
class ValidSettings:
    """Validation."""

    tasks: int = 100  # 0: no validation; the last parameters are tested
    episode: AnyEpisode = EpisodeSettings()


@dataclass(frozen=True)
class TestSettings:
    """The tests at the end of a run."""

    tasks: int = 600  # of each kind of episode
    episodes: dict[str, AnyEpisode] = field(
        default_factory=lambda: {
            "w5s1": EpisodeSettings(query=15),
            "w5s5": EpisodeSettings(shot=(5, 5), query=15),
        }
    )


@dataclass(frozen=True)
class BenchmarkSettings:
    """What `--mode=eval` runs instead of test episodes."""

    name: str = ""  # meta_dataset | vtab_md | orbit; "": test episodes
    only: str = ""  # data sets (orbit: users) to run, as NAME,NAME; "": all
    episodes: int = 600  # of each source of Meta-Dataset
    vtab_root: str = ""  # data_dir of tfds, or folder of VTAB's data sets
    vtab_protocol: str = "official"  # official | lite
    vtab_resize: str = ""  # "": vtab if official, lanczos if lite
    vtab_support: int = 1000  # support images of a task of VTAB
    most_test_images: int = 0  # most test images of a task of VTAB; 0: all
    tasks_per_user: int = 0  # test tasks of a user of ORBIT; 0: the protocol's


@dataclass(frozen=True)
class ProgramSettings:
    """The settings of every program."""

    program: str  # a row of lite_jax.apps.programs; fixed
    name: str  # names the default workdir, runs/<name>
    seed: int = 0  # of all random numbers: parameters, episodes, draws


@dataclass(frozen=True)
class Settings(ProgramSettings):
    """All settings of meta-learning; the defaults are ProtoNets on digits."""

    program: str = "meta_learning"
    name: str = "protonets"
    data: TaskDataSettings = TaskDataSettings()
    # protonets | cnaps | simple_cnaps | maml | mrml | imaml | finetuner | classifier
    learner: str = "protonets"
    backbone: BackboneSettings = BackboneSettings()
    protonets: ProtonetsSettings = ProtonetsSettings()
    cnaps: CnapsSettings = CnapsSettings()
    inner: InnerSettings = InnerSettings()
    hypergrad: HypergradSettings = HypergradSettings()
    gradient: GradientSettings = GradientSettings()
    devices: DeviceSettings = DeviceSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    valid: ValidSettings = ValidSettings()
    test: TestSettings = TestSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()

    def with_chunk_size(self, chunk_size: int) -> Settings:
        """Return these settings with this `gradient.chunk_size`."""
        gradient = dataclasses.replace(self.gradient, chunk_size=chunk_size)
        return dataclasses.replace(self, gradient=gradient)
