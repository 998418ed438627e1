"""The peer of our post-processing: the straightforward published order, on the same answers of a network."""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import ConfigError
from ...inference.base import BaseSegmenter
from .. import workloads as ours
from ..case import Case
from ..stages import Stages
from .published_recipe import RENDER, Rendered, finish


class PeerPost(ours.Post):
    """It starts from mask logits at stride 4: rendering those is the network's work there, and not timed."""

    def __init__(self, case: Case, segmenter: BaseSegmenter, folder: Path | None):
        super().__init__(case, segmenter)
        masks, self.methods = self.raw.masks, RENDER
        logits_QHW = torch.einsum("qc,chw->qhw", masks.embeds_QC, masks.features_CHW)
        self.rendered = Rendered(logits_QHW, masks.padded, masks.valid, masks.size)

    @torch.inference_mode()
    def run(self, stages: Stages) -> None:
        model = self.segmenter
        with stages("post"):
            self.last = finish(
                model.default_task, self.raw.class_logits_QK, self.rendered, model.categories, model.config.test
            )


def workload(case: Case, segmenter: BaseSegmenter, folder: Path | None) -> PeerPost:
    """The published order; it is post-processing and nothing else.

    Raises:
        ConfigError: other work was asked for.
    """
    if case.what != "post":
        raise ConfigError(f"--against published goes with --what post, not {case.what}.")
    return PeerPost(case, segmenter, folder)
