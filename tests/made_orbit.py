"""ORBIT in miniature: users, objects, videos of frames, and annotations."""

import json

import numpy as np
from PIL import Image

KINDS = ("clean", "clutter")


def write_video(root, split, user, thing, kind, number, frames, level, absent=()):
    name = f"{user}--{thing}--{kind}--{number:04d}"
    folder = root / split / user / thing / kind / name
    folder.mkdir(parents=True)
    described = {}
    for i in range(1, frames + 1):
        rng = np.random.default_rng((level, number, i))
        noise = rng.integers(-15, 15, (10, 10, 3))
        pixels = np.clip(40 * level + 20 + noise, 0, 255).astype(np.uint8)
        frame = f"{name}-{i:05d}.jpg"
        Image.fromarray(pixels).save(folder / frame, quality=95)
        described[frame] = {
            "object_bounding_box": None if i in absent else {"x": 1, "y": 1},
            "object_not_present_issue": i in absent,
        }
    notes = root / "annotations" / split
    notes.mkdir(parents=True, exist_ok=True)
    (notes / f"{name}.json").write_text(json.dumps(described))
    return folder


def orbit(root, users=(3, 2, 4), frames=64, clean=3, clutter=2):
    """Three users a split, with that many objects each."""
    for split in ("train", "validation", "test"):
        for u, things in enumerate(users):
            for t in range(things):
                for kind, videos in zip(KINDS, (clean, clutter), strict=True):
                    for v in range(videos):
                        write_video(
                            root, split, f"P{u:03d}", f"object{t}", kind, v,
                            frames + 3 * v, t, absent=(2, 3),
                        )  # fmt: skip
    return root
