"""Names of the files in the folder of a training run.

RUN/config.yaml                     its configuration
RUN/env.json                        its options, data and environment
RUN/metrics.jsonl                   losses and figures by iteration
RUN/results.json                    its end and its best figures
RUN/checkpoints/best.safetensors    weights of the best evaluation
RUN/checkpoints/last.safetensors    weights at the end, or at the last checkpoint
RUN/checkpoints/resume.pt           all that is needed to go on
"""

from __future__ import annotations

from pathlib import Path

CONFIG, ENVIRONMENT, METRICS, RESULTS = "config.yaml", "env.json", "metrics.jsonl", "results.json"
CHECKPOINTS = "checkpoints"
BEST, LAST, RESUME = "best.safetensors", "last.safetensors", "resume.pt"


def run_of(path: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to; any other path as it is."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else path
