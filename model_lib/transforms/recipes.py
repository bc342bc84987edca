"""The four fine-tuning recipes of LayerNorm removal from GPT-2, as published.

arXiv 2507.02559, Tables 3 and 4 (schedules, optimizer, tokens, hours); depths and widths are
GPT-2's. The EMA factors and micro-batches are those of the published code's configurations.
"""

from __future__ import annotations

import dataclasses

CONTEXT = 1024
VOCABULARY = 50257


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One column of the tables.

  Attributes:
    depth, dim, heads: of the model.
    micro_batch, accumulation: sequences of CONTEXT tokens per backward pass, passes per step.
    peak_rate, minimum_rate: of the learning rate: linear warm-up over `warmup` steps, then a
      cosine that reaches the minimum at step `horizon` (its formula is not printed there).
    steps: at which the released checkpoint was taken; large and xl stop before the horizon.
    aux_weight: of the auxiliary loss on the final norm's input.
    ema: factor of the moving average of the deviation, per call.
    start, gap_mlp, gap_qk, gap_v: of the removal (`removal.Schedule`).
    fine_tuning_tokens: as printed.
    gpu_hours, vanilla_gpu_hours: without LayerNorm, and of the control that keeps it.
    gpu_gb: memory of the GPU.
  """

  depth: int
  dim: int
  heads: int
  micro_batch: int
  accumulation: int
  peak_rate: float
  minimum_rate: float
  warmup: int
  horizon: int
  steps: int
  aux_weight: float
  ema: float
  start: int
  gap_mlp: int
  gap_qk: int
  gap_v: int
  fine_tuning_tokens: float
  gpu_hours: float
  vanilla_gpu_hours: float
  gpu_gb: int

  @property
  def tokens_per_step(self) -> int:
    """micro_batch x accumulation x CONTEXT."""
    return self.micro_batch * self.accumulation * CONTEXT


PAPER = {
  'small': Recipe(12, 768, 12, 32, 16, 6e-4, 3e-4, 25, 300, 300, 0.1, 0.9, 20, 2, 2, 3,
                  157e6, 1.5, 1, 80),
  'medium': Recipe(24, 1024, 16, 22, 23, 6e-4, 3e-4, 10, 500, 500, 0.1, 0.9, 20, 2, 2, 3,
                   259e6, 3.5, 2.5, 80),
  'large': Recipe(36, 1280, 20, 28, 18, 3e-4, 4e-5, 15, 1200, 600, 0.03, 0.9 ** (28 / 32), 30,
                  4, 4, 6, 310e6, 8, 6.5, 180),
  'xl': Recipe(48, 1600, 25, 18, 28, 1e-4, 2e-5, 20, 1200, 800, 0.01, 0.9 ** (18 / 32), 50,
               4, 4, 6, 413e6, 26, 14, 180),
}
