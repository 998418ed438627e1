"""Peer workloads with transformers, eager or compiled, with post-processing in the published order.

The model is the folder that our weights were converted to. transformers' own post-processing follows another rule (it
resizes to 384 x 384 first), and only equal results have comparable costs.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...config.schema import Config
from ...errors import ConfigError, MissingDependency
from ...inference.base import BaseSegmenter
from ...inference.mask_rendering import Size
from ...inference.preprocess import resized_shape
from ...inference.segmenter import Segmenter
from ...results.types import PanopticMap, Result
from ...results.writers import coco_categories, panoptic_image
from ...structures.categories import Categories
from ...structures.images import open_image
from ...structures.targets import Target
from ...weights.write_huggingface import to_config_json
from .. import workloads as ours
from ..case import Case, Workload, image_size, network_size, training_size
from ..model_under_test import autocast, class_logits, image
from ..stages import Stages
from ..synthetic_batch import training_batch
from .published import PeerPost
from .published_recipe import RENDER, Rendered, finish


class Model:
    """Network of transformers with test settings, classes, device and precision of our model."""

    def __init__(self, case: Case, segmenter: Segmenter, folder: Path):
        self.case, self.folder, self.device = case, folder, torch.device(segmenter.device)
        self.config: Config = segmenter.config
        self.categories: Categories = segmenter.categories
        self.task, self.precision = segmenter.default_task, case.precision
        self.replaced = type(segmenter) is not Segmenter
        self.net = load(folder, self.config).to(self.device)
        self.side: int | None = getattr(self.net.config, "image_size", None)  # plain ViTs take a square, of one size
        self.parts: dict[str, nn.Module] = {}
        if case.compile:
            self.net.compile(dynamic=False)  # for the timed size alone, which is fastest
        elif hasattr(self.net, "model"):  # a plain ViT has no such parts
            inner = self.net.model
            self.parts = {
                "backbone": inner.pixel_level_module.encoder,
                "pixel decoder": inner.pixel_level_module.decoder,
                "decoder": inner.transformer_module,
            }

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (B, Q, K) and mask logits at stride 4 (B, Q, h, w)."""
        with autocast(self.device, self.precision):
            output = self.net(pixel_values=images_BCHW)
        return output.class_queries_logits, output.masks_queries_logits

    @torch.inference_mode()
    def post(self, classes_QK: Tensor, masks_QHW: Tensor, padded: tuple, valid: tuple, size: tuple) -> Result:
        if self.replaced:  # see `Plausible`
            classes_QK = class_logits(*classes_QK.shape, self.device)
        masks = Rendered(masks_QHW.float(), padded, valid, size)
        return finish(self.task, classes_QK.float(), masks, self.categories, self.config.test)


def load(folder: Path, config: Config) -> nn.Module:
    """Load the network of transformers from a folder.

    Raises:
        MissingDependency: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency("transformers", "--against huggingface", extra="huggingface") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    [name] = to_config_json(config.model, ())["architectures"]
    return getattr(transformers, name).from_pretrained(folder).eval()


class _Workload(Workload):
    """Base class of workloads with a model of transformers."""

    def __init__(self, case: Case, segmenter: BaseSegmenter, folder: Path):
        self.images = case.batch
        self.model = Model(case, segmenter, folder)
        self.parts, self.methods = self.model.parts, RENDER

    def touch(self) -> None:
        side = self.model.side or 64
        self.model(torch.zeros(1, 3, side, side, device=self.model.device))

    def refuse_other_sizes(self, size: Size) -> None:
        """Raise a ConfigError if the network does not take images of this size (height, width)."""
        side = self.model.side
        if side is not None and size != (side, side):
            raise ConfigError(
                f"This network of transformers takes images of {side} x {side} only, not of {size[0]} x {size[1]}.",
                hint=f"Pass --what forward --size {side} {side}.",
            )


class PeerForward(_Workload):
    def __init__(self, case: Case, segmenter: BaseSegmenter, folder: Path):
        super().__init__(case, segmenter, folder)
        size = network_size(case, self.model.config)
        self.refuse_other_sizes(size)
        self.images_BCHW = ours.random_images(case.batch, size).to(self.model.device)

    def run(self, stages: Stages) -> None:
        self.last = self.model(self.images_BCHW)

    def answer(self) -> dict[str, np.ndarray]:
        classes, masks = self.last
        return {"class logits": classes[0].float().cpu().numpy(), "mask logits": masks[0].float().cpu().numpy()}


class PeerImages(_Workload):
    """Normalisation, network and post-processing in the published order, of images at the test size."""

    def __init__(self, case: Case, segmenter: BaseSegmenter, folder: Path):
        super().__init__(case, segmenter, folder)
        size, self.padded = image_size(case, self.model.config), network_size(case, self.model.config)
        self.refuse_other_sizes(self.padded)
        batch = [segmenter.prepare(image(size, number).image_HW3) for number in range(case.batch)]
        self.pixels_BCHW = torch.stack([prepared.pixels_CHW for prepared in batch])
        self.size = batch[0].size
        self.mean, self.std = (
            torch.tensor(values, device=self.model.device)[:, None, None]
            for values in (self.model.config.input.mean, self.model.config.input.std)
        )

    def run(self, stages: Stages) -> None:
        valid = tuple(self.pixels_BCHW.shape[-2:])
        with stages("preprocess"):
            images_BCHW, value = self.pixels_BCHW.to(self.model.device).float(), self.model.config.test.pad_value
            padding = (0, self.padded[1] - valid[1], 0, self.padded[0] - valid[0])
            if value is not None:
                images_BCHW = nn.functional.pad(images_BCHW, padding, value=value)
            images_BCHW = (images_BCHW - self.mean) / self.std
            if value is None:
                images_BCHW = nn.functional.pad(images_BCHW, padding)
        classes, masks = self.model(images_BCHW)
        with stages("post"):
            pairs = zip(classes, masks, strict=True)
            self.last = [self.model.post(*pair, self.padded, valid, self.size) for pair in pairs]

    def answer(self) -> dict[str, np.ndarray]:
        return ours.plain(self.last[0])


class PeerPredict(_Workload):
    """Loop that reads, runs transformers' image processor, the network and published post-processing, and writes.

    By default the processor stretches an image to the next multiple of its size_divisor. That is switched off here, and
    the image is padded as published, so that both networks see the same images. That of plain ViTs pads to the square.
    """

    def __init__(self, case: Case, segmenter: BaseSegmenter, folder: Path):
        super().__init__(case, segmenter, folder)
        from transformers import AutoImageProcessor

        self.refuse_other_sizes(network_size(case, self.model.config))
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.folder = tempfile.TemporaryDirectory(prefix="m2f-bench-")
        self.out = Path(self.folder.name)
        self.files = ours.images_of(case, self.model.config, self.out)
        self.images = len(self.files)

    def run(self, stages: Stages) -> None:
        entries = [self._one(path, stages) for path in self.files]
        document = {"categories": coco_categories(self.model.categories), "annotations": entries}
        (self.out / "results.json").write_text(json.dumps(document))

    def _one(self, path: Path, stages: Stages) -> dict[str, Any]:
        with stages("read"), open_image(path) as opened:
            image = opened.convert("RGB")
        with stages("preprocess"):
            options = {"size_divisor": 0} if self.model.side is None else {}
            pixels_BCHW = self.processor(images=image, return_tensors="pt", **options)["pixel_values"]
            valid = tuple(pixels_BCHW.shape[-2:])
            if self.model.side is not None:
                valid = resized_shape(*image.size[::-1], self.model.config.test.resize)
            below, right = (-edge % max(1, self.model.config.test.size_divisor) for edge in valid)
            images_BCHW = nn.functional.pad(pixels_BCHW.to(self.model.device), (0, right, 0, below))
        classes, masks = self.model(images_BCHW)
        with stages("post"):
            padded = tuple(images_BCHW.shape[-2:])
            self.last = self.model.post(classes[0], masks[0], padded, valid, image.size[::-1])
        with stages("write"):
            return write(self.last, self.out / path.name)

    def answer(self) -> dict[str, np.ndarray]:
        return ours.plain_of_all(self._result(path) for path in self.files)

    def _result(self, path: Path) -> Result:
        self._one(path, Stages(self.model.device, live=False))
        return self.last


def write(result: Result, path: Path) -> dict[str, Any]:
    """Write ids or labels as PNG, and return the entry of a shared JSON file, with objects as COCO results."""
    if isinstance(result, PanopticMap):
        panoptic_image(result).save(path.with_suffix(".ids.png"))
        return {"file_name": path.name, "segments_info": [vars(segment) for segment in result.segments]}
    if hasattr(result, "labels_HW"):
        Image.fromarray(result.labels_HW).save(path.with_suffix(".labels.png"))
        return {"file_name": path.name}
    return {"file_name": path.name, "objects": result.to_coco()}  # type: ignore[attr-defined]


class PeerLoad(Workload):
    """Loading of the converted folder with `from_pretrained`."""

    def __init__(self, case: Case, segmenter: BaseSegmenter, folder: Path):
        self.images, self.folder, self.config, self.device = 1, folder, segmenter.config, segmenter.device

    def touch(self) -> None:
        """Return at once: the first load is a warm-up already."""

    def run(self, stages: Stages) -> None:
        load(self.folder, self.config).to(self.device)


class PeerTrain(_Workload):
    """Training step: forward, transformers' own loss, backward, clipping, AdamW on all parameters."""

    def __init__(self, case: Case, segmenter: BaseSegmenter, folder: Path):
        super().__init__(case, segmenter, folder)
        self.refuse_other_sizes(training_size(case, segmenter.config))
        self.net = self.model.net.train()
        self._as_ours(segmenter.config)
        self.parts = {**self.parts, "loss": self.net.criterion} if self.parts else {}
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, weight_decay=0.05)
        self.make = partial(training_batch, case.batch, classes=len(self.model.categories), device=self.model.device)
        self.batch = self.make(size=training_size(case, self.model.config))

    def _as_ours(self, config: Config) -> None:
        """Configure the same work as our step: losses of all decoder layers, and frozen batch norms stay constant.

        Raises:
            ConfigError: the preset trains with pilots (MP-Former), which transformers does not have.
        """
        if config.model.piloting is not None:
            hint = "Compare a preset without; benchmarks/piloting_overhead.py tells what pilots add."
            raise ConfigError(f"{config.name} trains with pilots, and transformers has none.", hint=hint)
        self.net.config.use_auxiliary_loss = True
        if config.model.backbone.options.get("norm") == "frozen_bn":
            for module in self.net.model.pixel_level_module.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval().requires_grad_(False)

    def touch(self) -> None:
        side = self.model.side or 64
        self._step(self.make(size=(side, side)), Stages(self.model.device, live=False))

    def run(self, stages: Stages) -> None:
        self._step(self.batch, stages)

    def _step(self, batch: tuple[Tensor, list[Target]], stages: Stages) -> None:
        images_BCHW, targets = batch
        self.optimizer.zero_grad(set_to_none=True)
        labels, masks = [each.labels_N for each in targets], [each.masks().float() for each in targets]
        with autocast(self.model.device, self.model.precision):
            loss = self.net(pixel_values=images_BCHW, class_labels=labels, mask_labels=masks).loss.sum()
        with stages("backward"):
            loss.backward()
        with stages("optimizer"):
            nn.utils.clip_grad_norm_(self.net.parameters(), 0.01)
            self.optimizer.step()


WORKLOADS = {
    "forward": PeerForward,
    "picture": PeerImages,
    "predict": PeerPredict,
    "post": PeerPost,
    "load": PeerLoad,
    "train": PeerTrain,
}


def workload(case: Case, segmenter: BaseSegmenter, folder: Path) -> Any:
    """Return the peer of one of our workloads.

    Raises:
        ConfigError: there is none.
    """
    if case.what not in WORKLOADS:
        hint = f"--against huggingface goes with {', '.join(WORKLOADS)}."
        raise ConfigError(f"There is nothing of transformers to compare --what {case.what} with.", hint=hint)
    return WORKLOADS[case.what](case, segmenter, folder)
