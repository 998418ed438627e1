"""Methods by the name that a configuration gives them: how they are called, and their paper or code."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """Name of a method for people, and the address of its paper, or of its code where no paper has one."""

    title: str
    source: str


METHODS = {
    "mask2former": Method("Mask2Former", "https://arxiv.org/abs/2112.01527"),
    "maskformer": Method("MaskFormer", "https://arxiv.org/abs/2107.06278"),
    "mpformer": Method("MP-Former", "https://arxiv.org/abs/2303.07336"),
    "eomt": Method("EoMT", "https://github.com/tue-mps/eomt"),
    "pmt": Method("PMT", "https://github.com/tue-mps/pmt"),
}
