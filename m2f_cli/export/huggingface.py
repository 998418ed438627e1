"""Export of a folder that `from_pretrained` of Hugging Face transformers loads, with a model card (README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError, MissingDependency, WeightsError
from ..inference.load_network import save_huggingface
from ..inference.mask_rendering import Size
from ..inference.segmenter import Segmenter
from ..weights import write_huggingface
from .base import ExportOptions, refuse_options
from .model_card import model_card, model_class
from .safetensors import NOT_FOR_WEIGHTS, refuse_precision


class HuggingFace:
    """Exporter of weights, configuration, processor and model card. transformers itself loads them as a check."""

    suffix = ""
    packages = ("transformers", "safetensors")
    is_for_hub = True

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        refuse_options("huggingface", options, *NOT_FOR_WEIGHTS)
        refuse_precision("huggingface", options, "fp32")
        _transformers()
        write_huggingface.to_config_json(model.config.model, model.categories)

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        try:
            save_huggingface(path, model.model, model.config, model.categories)
        except WeightsError as error:  # a part that has no name there
            raise ExportError(error.message, hint=error.hint) from error
        (path / "README.md").write_text(model_card(model, options.push), encoding="utf-8")

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        """Open the folder with transformers.

        Raises:
            ExportError: transformers reports missing or unexpected weights.
        """
        network, report = getattr(_transformers(), model_class(model.config)).from_pretrained(
            path, output_loading_info=True, local_files_only=True
        )
        wrong = {kind: list(names)[:3] for kind, names in report.items() if names}
        if wrong:
            raise ExportError(f"transformers does not take the weights as they are: {wrong}.")
        return _TransformersSegmenter(network, model.config, model.categories, task=model.default_task)


class _TransformersSegmenter(Segmenter):
    """Segmenter with a network of transformers."""

    @property
    def only_size(self) -> Size | None:
        """The only (height, width) that the network takes, or None if it takes any. Plain ViTs take a square."""
        side = getattr(self.model.config, "image_size", None)
        return None if side is None else (side, side)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model(images_BCHW)
        masks_BQHW = output.masks_queries_logits
        # A rendered mask is its own feature: the dot product with row q of the identity is mask q.
        each = torch.eye(masks_BQHW.shape[1], device=masks_BQHW.device).expand(len(masks_BQHW), -1, -1)
        return output.class_queries_logits, each, masks_BQHW


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency("transformers", "A Hugging Face export, which it checks,", "huggingface") from error
    return transformers
