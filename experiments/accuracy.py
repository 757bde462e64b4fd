"""LITE against the exact gradient: accuracy after equal steps from the same seeds.

    python -m experiments.accuracy [--smoke] [--out=experiments/results/accuracy.jsonl]
        [--dataset=omniglot --root=FOLDER]

ProtoNets, 20-way 5-shot training on N = 100 support images, H ∈ {N/10, N/4, N}; H = N
is the exact gradient. Runs of one seed share initial parameters, tasks and test tasks,
so their accuracies can be compared pairwise. Without `--dataset` the tasks are made of
scikit-learn's digits, which need no download.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from experiments.rows import emit, parser
from lite_jax.defaults import base_config, episode
from lite_jax.train import train_and_evaluate

NUM_SUPPORT = 100


def make_config(
    arguments: argparse.Namespace, seed: int, num_backprop: int
) -> ConfigDict:
    """Return the configuration of one run."""
    config = base_config()
    config.seed = seed
    config.data.dataset, config.data.root = arguments.dataset, arguments.root
    config.data.image_size = 28
    config.backbone.mean, config.backbone.std = 0.0, 1.0
    config.gradient.num_backprop, config.gradient.chunk_size = num_backprop, 20
    config.train.steps = 2 if arguments.smoke else arguments.steps
    config.train.episode = episode(way=(20, 20), shot=(5, 5), query=5)
    config.valid.tasks = 0
    config.test.tasks = 5 if arguments.smoke else 200
    if arguments.dataset == "omniglot":
        del config.test.episodes.w5s1
        config.test.episodes.w20s1 = episode(way=(20, 20), shot=(1, 1), query=5)
    return config


def main() -> None:
    """Train once for each seed and H, and emit a row a run."""
    found = parser("accuracy of LITE and of the exact gradient after equal steps")
    found.add_argument("--dataset", default="digits", choices=("digits", "omniglot"))
    found.add_argument("--root", default="", help="folder of the Omniglot sets")
    found.add_argument("--steps", type=int, default=300)
    found.add_argument("--seeds", type=int, default=3)
    arguments = found.parse_args()
    for seed in range(1 if arguments.smoke else arguments.seeds):
        for num_backprop in (NUM_SUPPORT // 10, NUM_SUPPORT // 4, NUM_SUPPORT):
            config = make_config(arguments, seed, num_backprop)
            with tempfile.TemporaryDirectory() as workdir:
                results = train_and_evaluate(config, Path(workdir))
            row = {
                "experiment": "accuracy",
                "dataset": arguments.dataset,
                "seed": seed,
                "steps": config.train.steps,
                "num_support": NUM_SUPPORT,
                "num_backprop": num_backprop,
            }
            for kind, by_name in results.items():
                row[kind] = round(by_name["protonets"].mean, 4)
                row[f"{kind}_half_width"] = round(by_name["protonets"].half_width, 4)
            emit(arguments.out, row)


if __name__ == "__main__":
    main()
