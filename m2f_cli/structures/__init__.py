"""TODO m2f_cli.structures"""

from __future__ import annotations

from typing import Literal, TypeAlias

Task: TypeAlias = Literal["panoptic", "instance", "semantic"]
