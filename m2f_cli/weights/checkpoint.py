"""Checkpoint with its metadata, and m2f's own file format: one .safetensors whose header describes the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save as save_bytes
from torch import Tensor

from ..config import presets as config
from ..config.presets import refuse_code
from ..config.schema import Config, InputConfig, ModelConfig, ResizeConfig, SlideConfig
from ..errors import ConfigError, M2FError, WeightsError
from ..runtime import documents
from ..runtime.files import atomic
from ..runtime.text import json_text
from ..structures.categories import Categories, Category
from ..version import __version__
from .infer_config import num_classes
from .key_mapping import OurView, Shape, to_m2f
from .key_tables import TABLES
from .readers import Container

SCHEMA_VERSION = 2  # 1: a file with all weights
_HEADER = "m2f"


@dataclass(frozen=True)
class Base:
    """Weights that hold the tensors which a file of a training does not store.

    Attributes:
        kind: how a training read them: as the backbone's `pretrained`, or as `--init`.
        reference: where they are.
        sha256: hash of the tensors that the file does not store (`trained_only.digest`).
        shapes: shapes of all tensors of the network without LoRA, by name.
    """

    kind: Literal["pretrained", "init"]
    reference: str
    sha256: str
    shapes: Mapping[str, Shape]

    @classmethod
    def of_header(cls, record: Any) -> Base | None:
        """Return what a header says; None where it does not speak of a base.

        Raises:
            ValueError, LookupError, TypeError: it makes no sense.
        """
        if record is None:
            return None
        kind, reference, sha256 = record["kind"], record["reference"], record["sha256"]
        if kind not in ("pretrained", "init") or not (isinstance(reference, str) and isinstance(sha256, str)):
            raise ValueError(f"its base {reference!r} ({kind!r}) makes no sense")
        shapes = {str(name): tuple(map(int, shape)) for name, shape in record["shapes"].items()}
        return cls(kind, reference, sha256, shapes)


@dataclass
class Checkpoint:
    """Weights of any origin with their metadata.

    Attributes:
        source: the origin, for messages.
        format: a name in `key_tables.TABLES`.
        tensors: the tensors under the names of the file.
        model: the network that the tensors fit.
        config: the whole configuration, if the origin is a preset or an m2f checkpoint.
        categories: the classes, if the file describes them.
        class_names: the names of the classes, if the file has only these.
        input: normalisation from a Hugging Face processor.
        resize: resizing from a Hugging Face processor.
        slide: windows of semantic segmentation from such a processor.
        notes: assumptions that were made, in sentences for the user.
        base: where the tensors are that the file does not store; `trained_only.load` adds them.
    """

    source: str
    format: str
    tensors: Mapping[str, Tensor]
    model: ModelConfig
    config: Config | None = None
    categories: Categories | None = None
    class_names: list[str] | None = None
    input: InputConfig | None = None
    resize: ResizeConfig | None = None
    slide: SlideConfig | None = None
    notes: list[str] = field(default_factory=list)
    base: Base | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, without "no object"."""
        return num_classes(OurView(TABLES[self.format], self.tensors))

    def state_for(self, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Return the weights under m2f's names, exactly those of `shapes`. Floating point tensors are fp32.

        Tensors that are mapped from a file stay mapped if neither layout nor type has to change.

        Raises:
            WeightsError: tensors are missing, left over or misshapen, or a value is not finite.
        """
        state = to_m2f(TABLES[self.format], self.tensors, shapes)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = tensor = tensor.float()
                refuse_infinite(name, tensor)
        return state


def refuse_other_numbers(name: str, tensor: Tensor, expected: Tensor) -> None:
    """Refuse whole, complex or boolean values for a tensor that a network computes with real numbers.

    Raises:
        WeightsError: `tensor` is of such a type, and `expected`, that of the network, is not.
    """
    if expected.is_floating_point() and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(
            f"{name} holds numbers of the type {kind}, where the network has real numbers.",
            hint="Quantised weights cannot be loaded: take the file from before they were quantised.",
        )


def refuse_infinite(name: str, tensor: Tensor) -> None:
    # A sum is one pass without a temporary. Single values are checked only if it is not finite.
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise WeightsError(
            f"The weights are broken: {bad} of {tensor.numel()} values of {name!r} are NaN or infinite.",
            hint="The training that wrote them had diverged; use an earlier checkpoint.",
        )


# --- our own file -----------------------------------------------------------------------------------------------------


def save(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Config,
    categories: Categories,
    base: Base | None = None,
) -> Path:
    """Write an m2f checkpoint: weights, resolved configuration and classes in one file, or nothing at all.

    Args:
        base: where the tensors are that `state` leaves out. None: it has all.

    Raises:
        WeightsError: the file cannot be written.
    """
    path = Path(path)
    header = {
        "schema_version": 1 if base is None else SCHEMA_VERSION,
        "m2f": __version__,
        "config": config.model_dump(mode="json", exclude_none=True),
        "categories": [category.to_dict() for category in categories],
        **({} if base is None else {"base": vars(base)}),
    }
    # safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_safetensors(path, tensors, {_HEADER: json_text(header)})
    return path


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write under a temporary name, then rename, so that no half-written file remains.

    Raises:
        M2FError: the folder or the file cannot be written.
    """
    try:
        # Not save_file: newer safetensors writes under a name of its own, which a killed process would leave behind.
        content = save_bytes(tensors, metadata)
    except SafetensorError as error:
        raise M2FError(f"Cannot write {path}: {error}.") from error
    with atomic(path, durable=True) as part:
        part.write_bytes(content)


def is_ours(container: Container) -> bool:
    return _HEADER in container.extra


def from_container(container: Container, source: str, *, trust_code: bool) -> Checkpoint:
    """Return the m2f checkpoint that a file holds.

    Raises:
        WeightsError: a newer m2f wrote the file, or its header is damaged.
        ConfigError: the file names code and `trust_code` is false.
    """
    try:
        header = documents.parse_json(container.extra[_HEADER], f"The header of {source}", error=WeightsError)
        version = header["schema_version"]
        if version > SCHEMA_VERSION:
            raise WeightsError(
                f"{source} was written by m2f {header.get('m2f', '?')} in version {version} of the format; this m2f "
                f"{__version__} reads version {SCHEMA_VERSION}.",
                hint="Run: pip install --upgrade m2f-cli",
            )
        resolved = config.parse(header["config"], source)
        categories = tuple(Category.from_dict(record) for record in header["categories"])
        base = Base.of_header(header.get("base"))
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, ConfigError) as error:
        raise WeightsError(f"The header of {source} is damaged: {str(error).rstrip('.')}.") from error
    if not trust_code:
        refuse_code(resolved.model, source)
    return Checkpoint(
        source, "m2f", container.tensors, resolved.model, config=resolved, categories=categories, base=base
    )
