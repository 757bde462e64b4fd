"""Algorithm 1 of the LITE paper in PyTorch, to be timed beside ours; extra `torch`.

For every batch of queries: draw H support images, encode the others without gradient
and those H with it, adapt on the union, back-propagate the batch's mean loss, and weigh
the gradient by N/H, as the paper's Algorithm 1 is written. Networks are timm's, of the
same shapes as ours, with frozen batch normalisation. With `cached`, features that need
no gradient are computed once a task, as published code does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lite_jax import Task

Gradient = Callable[[], None]


def make_gradient(
    learner: str,
    backbone: str,
    task: Task,
    *,
    way: int,
    num_backprop: int,
    chunk_size: int,
    query_batch: int,
    cached: bool,
    compiled: bool,
) -> Gradient:
    """Return a function that leaves the gradient of one task in the parameters.

    Args:
        learner: "protonets" or "simple_cnaps".
        backbone: "resnet18" or "efficientnet_b0".
        task: NumPy arrays, images uint8 `[n, height, width, channels]`.
        way: Classes of the task.
        num_backprop: H.
        chunk_size: Images encoded at once without gradient.
        query_batch: Queries of a batch.
        cached: Keep what needs no gradient from one query batch to the next.
        compiled: Compile the networks by `torch.compile`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    support, query = (_to_torch(part, device) for part in task)
    model = _LEARNERS[learner](backbone, way).to(device)
    if compiled:
        model.compile_networks()
    generator = torch.Generator().manual_seed(0)

    def gradient() -> None:
        model.zero_grad(set_to_none=True)
        count, cache = len(support[1]), None
        batches = torch.arange(len(query[1])).split(query_batch)
        for batch in batches:
            order = torch.randperm(count, generator=generator).to(device)
            drawn, rest = order[:num_backprop], order[num_backprop:]
            if cached and cache is None:
                rest_of_all = torch.arange(count, device=device)
                cache = model.without_gradient(support[0], rest_of_all, chunk_size)
            known = (
                tuple(x[rest] for x in cache)
                if cache is not None
                else model.without_gradient(support[0], rest, chunk_size)
            )
            loss = model.loss(support, drawn, rest, known, query, batch.to(device))
            (loss * (count / num_backprop / len(batches))).backward()

    return gradient


def _to_torch(part: Any, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.array(part.inputs)).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.array(part.labels, np.int64))
    return images.to(device).float().div(255).sub(0.5).div(0.25), labels.to(device)


def _network(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=0).eval()


class _ProtoNets(nn.Module):
    """Class means; all of the network is learned."""

    def __init__(self, backbone: str, way: int):
        super().__init__()
        self.backbone, self.way = _network(backbone), way
        self.features = self.backbone

    def compile_networks(self) -> None:
        self.features = torch.compile(self.backbone)

    @torch.no_grad()
    def without_gradient(
        self, images: torch.Tensor, rows: torch.Tensor, chunk_size: int
    ) -> tuple[torch.Tensor, ...]:
        return (torch.cat([self.features(images[r]) for r in rows.split(chunk_size)]),)

    def loss(self, support, drawn, rest, known, query, batch):  # type: ignore
        images, labels = support
        found = torch.cat([self.features(images[drawn]), *known])
        labels = torch.cat([labels[drawn], labels[rest]])
        members = F.one_hot(labels, self.way).to(found.dtype)
        means = members.T @ found / members.sum(0)[:, None]
        logits = -torch.cdist(self.features(query[0][batch]), means).square()
        return F.cross_entropy(logits, query[1][batch])


class _SimpleCnaps(nn.Module):
    """A set encoder that generates FiLM of a frozen backbone; Mahalanobis distances."""

    def __init__(self, backbone: str, way: int):
        super().__init__()
        self.backbone, self.way = _network(backbone).requires_grad_(False), way
        self.features = self.backbone
        blocks = [(3, 64), *[(64, 64)] * 4]
        self.encoder = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(*channels, 3, padding=1), nn.GroupNorm(8, 64),
                    nn.ReLU(), nn.MaxPool2d(2),
                )
                for channels in blocks
            )
        )  # fmt: skip
        self.places = [m for m in self.backbone.modules() if _is_norm(m)]
        sizes = [m.num_features for m in self.places]
        self.generators = nn.ModuleList(
            nn.Sequential(nn.Linear(64, size), nn.ReLU(), nn.Linear(size, 2 * size))
            for size in sizes
        )
        for place in self.places:
            place.register_forward_hook(_modulate)

    def compile_networks(self) -> None:
        self.encoder = torch.compile(self.encoder)  # type: ignore[assignment]
        self.features = torch.compile(self.backbone)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images).mean((2, 3))

    def _set_film(self, embedding: torch.Tensor) -> None:
        for place, generator in zip(self.places, self.generators, strict=True):
            place.film = generator(embedding).chunk(2)  # type: ignore

    @torch.no_grad()
    def without_gradient(
        self, images: torch.Tensor, rows: torch.Tensor, chunk_size: int
    ) -> tuple[torch.Tensor, ...]:
        chunks = rows.split(chunk_size)
        every = torch.arange(len(images), device=images.device).split(chunk_size)
        self._set_film(torch.cat([self._encode(images[r]) for r in every]).mean(0))
        embedded = torch.cat([self._encode(images[r]) for r in chunks])
        return embedded, torch.cat([self.features(images[r]) for r in chunks])

    def loss(self, support, drawn, rest, known, query, batch):  # type: ignore
        images, labels = support
        embedded = torch.cat([self._encode(images[drawn]), known[0]])
        self._set_film(embedded.mean(0))
        found = torch.cat([self.features(images[drawn]), known[1]])
        labels = torch.cat([labels[drawn], labels[rest]])
        queries = self.features(query[0][batch])
        logits = torch.stack(
            [
                -_squared_distance(queries, found, found[labels == k])
                for k in range(self.way)
            ],
            1,
        )
        return F.cross_entropy(logits, query[1][batch])


def _squared_distance(queries, everything, own):  # type: ignore
    """Return Mahalanobis distances by an explicit inverse, as published code does."""
    share = len(own) / (len(own) + 1)
    identity = torch.eye(own.shape[1], device=own.device)
    covariance = share * _covariance(own) + (1 - share) * _covariance(everything)
    off = queries - own.mean(0)
    return (off @ torch.inverse(covariance + identity) * off).sum(1)


def _covariance(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / max(len(rows) - 1, 1)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


def _modulate(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    scale, shift = module.film
    return output * (1 + scale[:, None, None]) + shift[:, None, None]


_LEARNERS: dict[str, Any] = {"protonets": _ProtoNets, "simple_cnaps": _SimpleCnaps}
