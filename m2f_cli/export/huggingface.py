"""Export of a folder that `from_pretrained` of Hugging Face transformers loads, with a model card (README.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.schema import Config
from ..errors import ExportError, MissingDependency, WeightsError
from ..inference.load_network import save_huggingface
from ..inference.segmenter import Segmenter
from ..version import __version__
from ..weights import write_huggingface
from .base import ExportOptions, refuse_options
from .safetensors import NOT_FOR_WEIGHTS, refuse_precision

_PAPERS = {
    "mask2former": ("Mask2Former", "https://arxiv.org/abs/2112.01527"),
    "maskformer": ("MaskFormer", "https://arxiv.org/abs/2107.06278"),
    "mpformer": ("MP-Former", "https://arxiv.org/abs/2303.07336"),
}
_SPDX = {"cc-by-nc-4.0", "apache-2.0", "mit", "bsd-3-clause"}  # names of the hub, which are those of SPDX in lower case
_CLASSES_SHOWN = 200


class HuggingFace:
    """Exporter of weights, configuration, processor and model card. transformers itself loads them as a check."""

    suffix = ""
    packages = ("transformers", "safetensors")

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
        (path / "README.md").write_text(model_card(model), encoding="utf-8")

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        """Open the folder with transformers.

        Raises:
            ExportError: transformers reports missing or unexpected weights.
        """
        network, report = getattr(_transformers(), _class_of(model.config)).from_pretrained(
            path, output_loading_info=True, local_files_only=True
        )
        wrong = {kind: list(names)[:3] for kind, names in report.items() if names}
        if wrong:
            raise ExportError(f"transformers does not take the weights as they are: {wrong}.")
        return _TransformersSegmenter(network, model.config, model.categories, task=model.default_task)


class _TransformersSegmenter(Segmenter):
    """Segmenter with a network of transformers."""

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


def _class_of(config: Config) -> str:
    maskformer = config.model.method == "maskformer"
    return "MaskFormerForInstanceSegmentation" if maskformer else "Mask2FormerForUniversalSegmentation"


# --- the model card ---------------------------------------------------------------------------------------------------


def is_released(segmenter: Segmenter) -> bool:
    """Return True for the released weights of the preset. Published figures and licences apply to no others."""
    source, config = segmenter.source, segmenter.config
    if source.startswith(f"{config.name} ("):
        return True
    file_name = Path(source).name
    addresses = [(str(each.hub), str(each.url).rpartition("/")[2]) for each in config.weights]
    return any(
        source == hub or (each.hash_prefix is not None and file_name == file)
        for each, (hub, file) in zip(config.weights, addresses, strict=True)
    )


def model_card(segmenter: Segmenter, figures: Sequence[str] = ()) -> str:
    """Return the text of README.md, with metadata for the hub between lines of dashes at its beginning.

    Args:
        segmenter: the model.
        figures: lines about measured quality. Published figures are added if the weights are the released ones.
    """
    config, released = segmenter.config, is_released(segmenter)
    method, paper = _PAPERS[config.model.method]
    licences = list(dict.fromkeys(each.licence for each in config.weights)) if released else []
    parts = [
        _front_matter(config, licences),
        f"# {config.name}\n\n{config.summary or method}",
        f"[{method}]({paper}) for {' and '.join(config.test.tasks)} segmentation, {len(segmenter.categories)} classes. "
        f"Written by m2f {__version__} from `{segmenter.source}`.",
        _usage(config),
        _section("Figures", [*figures, *(_published(config) if released else ())] or ["Not measured."]),
        _section("Licence", [_licence(config, licences)]),
        _section(
            "Classes",
            [
                ", ".join(c.name for c in segmenter.categories[:_CLASSES_SHOWN])
                + (", …" if len(segmenter.categories) > _CLASSES_SHOWN else "")
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Config, licences: Sequence[str]) -> str:
    spdx = licences[0].lower() if len(licences) == 1 else "other"
    lines = [
        "library_name: transformers",
        "pipeline_tag: image-segmentation",
        f"license: {spdx if spdx in _SPDX else 'other'}",
        f"tags: [{', '.join([config.model.method, *(f'{task}-segmentation' for task in config.test.tasks)])}]",
    ]
    return "\n".join(["---", *lines, "---"])


def _usage(config: Config) -> str:
    model = _class_of(config)
    return f"""```python
from PIL import Image
from transformers import AutoImageProcessor, {model}

folder = "."  # of this file, or its name on the hub
processor = AutoImageProcessor.from_pretrained(folder)
model = {model}.from_pretrained(folder)
image = Image.open("picture.jpg").convert("RGB")
outputs = model(**processor(image, return_tensors="pt"))
result = processor.post_process_{config.task}_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
```"""


def _published(config: Config) -> list[str]:
    rows = ["| metric | published | setting | source |", "|---|---|---|---|"]
    for each in config.published:
        doubt = "" if each.verified else " (unverified)"
        rows.append(f"| {each.metric} | {each.value:g}{doubt} | {each.setting} | {each.source} |")
    note = "Published figures, of the published code; transformers' post-processing differs from it in details."
    return [note, "\n".join(rows)] if config.published else []


def _licence(config: Config, licences: Sequence[str]) -> str:
    if licences:
        return f"The weights were released under {' and '.join(licences)}."
    started = list(dict.fromkeys(each.licence for each in config.weights))
    if not started:
        return "Not stated: whoever trained these weights has to say."
    return (
        "Not stated: whoever trained these weights has to say. If the training started from the released weights "
        f"of {config.name}, their licence ({' or '.join(started)}) may bind these, too."
    )


def _section(title: str, paragraphs: Sequence[str]) -> str:
    return "\n\n".join([f"## {title}", *paragraphs])
