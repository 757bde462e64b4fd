"""Episodes of variable way and shot, against Meta-Dataset's own statistics."""

import numpy as np
import pytest

from lite_jax import UserError
from lite_jax.data import (
    ArraySource,
    EpisodeSpec,
    Groups,
    Mixture,
    VariableSpec,
    load_task,
    rotated,
    sample_episode,
)
from lite_jax.data.episodes import check_spec, episode_rng
from lite_jax.data.sources import equal_groups

EPISODES = 1200
TRAFFIC_SIGNS = (
    [210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160]
    + [780, 630, 420, 1110, 1200, 210, 360, 330, 390, 510, 270, 1500, 600, 240, 540]
    + [270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300, 360, 240, 240]
)
ALPHABETS = (  # characters of Omniglot's 20 evaluation alphabets
    [20, 26, 26, 26, 26, 26, 45, 45, 41, 26, 47, 40, 30, 45, 46, 28, 23, 25, 42, 26]
)


def alphabets():
    ends = np.cumsum(ALPHABETS)
    return equal_groups(
        [np.arange(end - n, end) for end, n in zip(ends, ALPHABETS, strict=True)]
    )


# Means of 20,000 episodes of the original sampler: ways (least, most), support size and
# its percentiles (5, 50, 95), shots a class, share of classes with one shot.
GOLDEN = {
    "aircraft": ([100] * 15, None, 10.0, (5, 15), 338, (42, 386, 495), 35.6, 0.016),
    "cu_birds": ([59] * 30, None, 17.6, (5, 30), 316, (33, 344, 490), 19.5, 0.034),
    "dtd": ([120] * 7, None, 6.0, (5, 7), 281, (28, 292, 496), 47.1, 0.017),
    "omniglot": (
        [20] * 659, alphabets(), 19.0, (5, 47), 92, (13, 72, 239), 4.8, 0.16,
    ),
    "traffic_sign": (
        TRAFFIC_SIGNS, None, 24.1, (5, 43), 417, (85, 483, 495), 22.2, 0.026,
    ),
    "ilsvrc, flat": (
        [1281] * 1000, None, 27.6, (5, 50), 423, (96, 481, 494), 20.3, 0.017,
    ),
}  # fmt: skip


def near(values, golden, decimals):
    """Within four standard errors of both means, and the golden one's rounding."""
    error = np.std(values) * np.sqrt(1 / EPISODES + 1 / 20_000)
    assert abs(np.mean(values) - golden) < 4 * error + 0.5 * 10.0**-decimals


def test_the_classes_of_the_statistics_are_meta_datasets():
    assert (len(TRAFFIC_SIGNS), sum(TRAFFIC_SIGNS)) == (43, 39_209)
    assert (len(ALPHABETS), sum(ALPHABETS)) == (20, 659)


@pytest.mark.parametrize("name", GOLDEN)
def test_statistics_are_meta_datasets(name):
    sizes, groups, way, span, support, percentiles, shots, singles = GOLDEN[name]
    draws = [
        sample_episode(sizes, VariableSpec(), episode_rng(0, name, i), groups)
        for i in range(EPISODES)
    ]
    counts = [np.array([len(x) for x in draw.support]) for draw in draws]
    ways = np.array([len(x) for x in counts])
    totals = np.array([x.sum() for x in counts])
    assert {len(x) for draw in draws for x in draw.query} == {10}
    assert (ways.min(), ways.max()) == span and totals.max() < 500
    near(ways, way, 1)
    near(totals, support, 0)
    near(totals / ways, shots, 1)
    near([(x == 1).mean() for x in counts], singles, 3)
    for share, value in zip((0.05, 0.5, 0.95), percentiles, strict=True):
        slack = 4 * np.sqrt(share * (1 - share) * (1 / EPISODES + 1 / 20_000))
        assert np.mean(totals < value - 1) - slack < share
        assert np.mean(totals <= value + 1) + slack > share


def test_small_classes_lower_the_query_of_the_whole_episode():
    sizes = [6, 40, 40, 40, 40]
    draw = sample_episode(sizes, VariableSpec(), episode_rng(0, "small", 0))
    assert [len(x) for x in draw.query] == [3] * 5
    for support, query in zip(draw.support, draw.query, strict=True):
        assert len(support) >= 1 and not set(support) & set(query)


def test_shots_follow_the_published_formula():
    sizes = np.array([12, 300, 45, 90, 20])
    rng = np.random.default_rng(3)
    beta, alpha = rng.random(), rng.uniform(np.log(0.5), np.log(2), 5)
    rest = sizes - 6  # q = 12 // 2
    total = min(500, sum(int(beta * min(100, r) + 1) for r in rest))
    weights = sizes * np.exp(alpha) / sum(sizes * np.exp(alpha))
    expected = [
        min(int(w * (total - 5)) + 1, r) for w, r in zip(weights, rest, strict=True)
    ]
    shots, query = VariableSpec().draw_sizes(sizes, np.random.default_rng(3))
    assert (shots.tolist(), query) == (expected, 6)


# ------------------------------------------------------------------------- groups


def test_groups_too_small_for_the_way_are_never_drawn_and_the_rest_in_proportion():
    groups = Groups(
        [np.arange(4), np.arange(4, 14), np.arange(14, 24)],
        np.array([0.2, 0.2, 0.6]),
        [False] * 3,
    )
    firsts = [
        sample_episode([20] * 24, VariableSpec(), episode_rng(0, "g", i), groups)
        .classes.min()
        for i in range(2000)
    ]  # fmt: skip
    assert min(firsts) >= 4
    assert abs(np.mean(np.array(firsts) >= 14) - 0.75) < 4 * np.sqrt(0.1875 / 2000)


def test_whole_groups_give_all_their_classes_up_to_the_largest_way():
    groups = equal_groups([np.arange(8), np.arange(8, 68)], whole=True)
    seen = {}
    for i in range(50):
        draw = sample_episode([30] * 68, VariableSpec(), episode_rng(0, "w", i), groups)
        seen.setdefault(len(draw.classes), []).append(frozenset(draw.classes))
    assert set(seen) == {8, 50}
    assert set(seen[8]) == {frozenset(range(8))}
    assert all(min(x) >= 8 for x in seen[50]) and len(set(seen[50])) > 1


def made_source(level, classes, images=6, size=2, groups=None):
    planes = [np.full((images, size, size, 3), level + c) for c in range(classes)]
    names = [str(c) for c in range(classes)]
    return ArraySource(names, [x.astype(np.uint8) for x in planes], groups)


def test_a_mixture_draws_its_sets_equally_and_never_mixes_them():
    halves = equal_groups([np.arange(10), np.arange(10, 30)])
    mixture = Mixture(
        {
            "few": made_source(0, 6),
            "many": made_source(50, 60),
            "grouped": made_source(150, 30, groups=halves),
        }
    )
    assert mixture.class_names[6] == "many/0" and len(mixture.class_sizes) == 96
    counts = {"few": 0, "many": 0, "first half": 0, "second half": 0}
    for i in range(600):
        task = load_task(mixture, VariableSpec((5, 6)), 0, "mix", i)
        levels = task.support.inputs[task.support.mask][:, 0, 0, 0]
        low, high = int(levels.min()), int(levels.max())
        place = np.searchsorted([50, 150, 160], [low, high], side="right")
        assert place[0] == place[1]
        counts[list(counts)[place[0]]] += 1
    for name, share in zip(counts, (1 / 3, 1 / 3, 1 / 6, 1 / 6), strict=True):
        assert abs(counts[name] / 600 - share) < 4 * np.sqrt(share / 600)


def test_a_mixture_needs_sets_of_one_shape():
    with pytest.raises(UserError, match="different image shapes"):
        Mixture({"a": made_source(0, 2), "b": made_source(0, 2, size=3)})
    with pytest.raises(UserError, match="name one"):
        Mixture({})


def test_turned_classes_meet_as_their_plain_ones_do():
    source = rotated(made_source(0, 12, groups=equal_groups([np.arange(5)])))
    assert [x.min() for x in source.groups.members] == [0, 12, 24, 36]
    assert (
        source.groups.chances.sum() == 1 and rotated(made_source(0, 2)).groups is None
    )


@pytest.mark.parametrize(
    "spec,message",
    [
        (VariableSpec((5, 50), max_support=20), "max_support=20 is under one image"),
        (VariableSpec((1, 5)), "way=1,5"),
        (VariableSpec((9, 10)), "way=9 is more than the 8 classes"),
        (VariableSpec(max_query=0), "max_query=0"),
        (VariableSpec(max_contribution=0), "max_contribution=0"),
        (EpisodeSpec((9, 9), (1, 1), 1), "way=9 is more than the 8 classes"),
    ],
)
def test_specs_that_cannot_be_served_are_explained(spec, message):
    source = made_source(0, 12, groups=equal_groups([np.arange(8)]))
    with pytest.raises(UserError, match=message):
        check_spec("train.episode", spec, source)


def test_a_class_of_one_image_cannot_be_queried():
    with pytest.raises(UserError, match="'0' has 1 images"):
        check_spec("e", VariableSpec(), made_source(0, 6, images=1))
    check_spec("e", VariableSpec(), made_source(0, 6, images=2))
