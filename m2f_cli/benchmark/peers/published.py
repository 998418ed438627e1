"""Peer of our post-processing: the published order, on the same outputs of a network."""

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
    """Post-processing in the published order. It starts from mask logits at stride 4, which are not timed."""

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
    """Return the peer of the workload "post".

    Raises:
        ConfigError: the case is other work.
    """
    if case.what != "post":
        raise ConfigError(f"--against published goes with --what post, not {case.what}.")
    return PeerPost(case, segmenter, folder)
