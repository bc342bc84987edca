"""Norms of a batch: moments over examples and positions, with running ones for inference.

All are called as `layer(x, train)`, x [B, ..., C]. The state is in the collection `batch_stats`,
moves in training with `mutable=['batch_stats']`, and never in the call that creates it.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine


def batch_axes(x: jax.Array) -> tuple[int, ...]:
  """All axes but the last."""
  return tuple(range(x.ndim - 1))


def running_moments(module: nn.Module, channels: int) -> tuple:
  """(variable `mean` [C] from 0, variable `var` [C] from 1, whether this call makes them)."""
  is_new = not module.has_variable('batch_stats', 'mean')
  return (module.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32),
          module.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32), is_new)


def count_values(x: jax.Array, norm: str) -> int:
  """Values per channel of x [..., C]; UserError below 2, where there is no variance."""
  count = x.size // x.shape[-1]
  if count < 2:
    raise UserError(f'{norm}: training needs at least 2 values per channel, got {count}; '
                    'use a larger batch')
  return count


def to_population(var: jax.Array, count: int, running: str) -> jax.Array:
  """The biased variance of `count` values as it enters the running one."""
  return var * (count / (count - 1)) if running == 'unbiased' else var


def moved_moments(x: jax.Array, mean: jax.Array, var: jax.Array, momentum: float,
                  running: str) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """The moments of a batch, and the running ones after they have moved by them.

  Args:
    x: [B, ..., C].
    mean, var: running, [C].
    momentum: weight of the new value.
    running: 'biased' or 'unbiased'.

  Returns:
    ((mean, biased variance), (running mean, running variance)), each [C].
  """
  count = count_values(x, 'batch norm')
  batch_mean, batch_var = (m.reshape(-1) for m in fn.moments(x, batch_axes(x)))
  return (batch_mean, batch_var), (
    fn.moving_average(mean, batch_mean, momentum),
    fn.moving_average(var, to_population(batch_var, count, running), momentum))


def train_moments(module: nn.Module, x: jax.Array, mean_state, var_state,
                  is_new: bool) -> tuple[jax.Array, jax.Array]:
  """Moments [C] of the batch; the running ones move by them.

  Args:
    module: a batch norm, with `momentum` and `running`.
    x: [B, ..., C].
    mean_state, var_state, is_new: of `running_moments`.
  """
  batch, moved = moved_moments(x, mean_state.value, var_state.value, module.momentum,
                               module.running)
  if not is_new:
    mean_state.value, var_state.value = moved
  return batch


class BatchNorm(nn.Module):
  """g * (x - mean) / sqrt(var + eps) + b per channel; x [B, ..., C].

  In training the moments are the batch's (biased variance) and the running ones, in the
  collection `batch_stats`, move by `(1 - momentum) * old + momentum * batch`, which needs
  `mutable=['batch_stats']`; the variance that enters them is multiplied by m / (m - 1)
  unless `running` is 'biased', m being the number of values per channel. At inference the
  running ones are used. The call that creates the state does not move it.

  `stat_mode` is 'batch'; 'frozen', with the running moments in training too, which do not move;
  or 'ghost(k)', with moments of every k examples, whose averages move the running ones (the call
  that creates the state takes the moments of all its examples).

  Raises:
    UserError: training with one value per channel, where the batch has no variance, or with a
      batch that is no whole number of ghosts.
  """

  eps: float
  momentum: float
  running: str
  stat_mode: str = 'batch'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    mean_state, var_state, is_new = running_moments(self, x.shape[-1])
    if train and self.stat_mode.startswith('ghost') and not is_new:
      return affine(self, self._ghosts(fn.wide(x), mean_state, var_state)).astype(x.dtype)
    mean, var = mean_state.value, var_state.value
    if train and self.stat_mode != 'frozen':
      mean, var = train_moments(self, x, mean_state, var_state, is_new)
    return affine(self, fn.standardize_with(fn.wide(x), mean, var, self.eps)).astype(x.dtype)

  def _ghosts(self, x: jax.Array, mean_state, var_state) -> jax.Array:
    size = min(int(self.stat_mode[len('ghost('):-1]), len(x))
    if len(x) % size:
      raise UserError(f'batch norm: {len(x)} examples are no whole number of ghosts of {size}; '
                      'take a stat_mode=ghost(k) whose k divides the batch')
    x_gnc = x.reshape(len(x) // size, -1, x.shape[-1])
    count = count_values(x_gnc[0], f'batch norm with ghosts of {size}')
    mean, var = fn.moments(x_gnc, 1)
    mean_state.value = fn.moving_average(mean_state.value, jnp.mean(mean, (0, 1)), self.momentum)
    var_state.value = fn.moving_average(
      var_state.value, jnp.mean(to_population(var, count, self.running), (0, 1)), self.momentum)
    return ((x_gnc - mean) * jax.lax.rsqrt(var + self.eps)).reshape(x.shape)


class BatchRenorm(nn.Module):
  """g * ((x - mean_B) / sd_B * r + d) + b per channel; x [B, ..., C].

  r = clip(sd_B / sd, 1/r_t, r_t) and d = clip((mean_B - mean) / sd, -d_t, d_t) are held in the
  gradient; sd_B = sqrt(var_B + eps), and its running average is sd. The limits r_t and d_t go
  from 1 and 0 to `rmax` and `dmax` in the first `ramp` training steps, on a line. At inference
  g * (x - mean) / sd + b.

  Raises:
    UserError: training with one value per channel.
  """

  eps: float
  momentum: float
  rmax: float
  dmax: float
  ramp: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    channels, wide = x.shape[-1:], fn.wide(x)
    is_new = not self.has_variable('batch_stats', 'mean')
    mean, sd = (self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32),
                self.variable('batch_stats', 'sigma', jnp.ones, channels, jnp.float32))
    steps = self.variable('batch_stats', 'steps', jnp.zeros, (), jnp.float32)
    along = lambda vector: fn.along_channels(vector, x.ndim)
    if not train:
      return affine(self, (wide - along(mean.value)) / along(sd.value)).astype(x.dtype)
    count_values(x, 'batch renorm')
    batch_mean, batch_var = fn.moments(x, batch_axes(x))
    batch_sd = jnp.sqrt(batch_var + self.eps)
    done = jnp.minimum(steps.value / self.ramp, 1.0) if self.ramp else 1.0
    limit_r, limit_d = 1 + (self.rmax - 1) * done, self.dmax * done
    r = jnp.clip(batch_sd / along(sd.value), 1 / limit_r, limit_r)
    d = jnp.clip((batch_mean - along(mean.value)) / along(sd.value), -limit_d, limit_d)
    r, d = jax.lax.stop_gradient((r, d))
    if not is_new:
      mean.value = fn.moving_average(mean.value, batch_mean.reshape(-1), self.momentum)
      sd.value = fn.moving_average(sd.value, batch_sd.reshape(-1), self.momentum)
      steps.value = steps.value + 1
    return affine(self, (wide - batch_mean) / batch_sd * r + d).astype(x.dtype)


class BatchChannelNorm(nn.Module):
  """A batch norm, then a group norm, each with gain and bias; x [B, ..., C].

  Raises:
    UserError: training with one value per channel, or C is not divisible by `groups`.
  """

  groups: int
  eps: float
  momentum: float
  running: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    fn.check_groups(x, self.groups, 'batch_channel norm')
    mean_state, var_state, is_new = running_moments(self, x.shape[-1])
    mean, var = mean_state.value, var_state.value
    if train:
      mean, var = train_moments(self, x, mean_state, var_state, is_new)
    y = affine(self, fn.standardize_with(fn.wide(x), mean, var, self.eps))
    y = fn.group_standardize(y, self.groups, self.eps)
    gain = self.param('group_scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('group_bias', nn.initializers.zeros, x.shape[-1:])
    return fn.shift(fn.scale(y, gain), bias).astype(x.dtype)


class SwitchNorm(nn.Module):
  """g * (x - m) / sqrt(v + eps) + b, m and v mixed from instance, layer and batch; x [B, ..., C].

  m = sum softmax(mean_weight) (m_instance, m_layer, m_batch), v likewise with var_weight; the
  layer's moments are those of a whole example. Running moments of the batch at inference.

  Raises:
    UserError: x has no positions, or training with one value per channel.
  """

  eps: float
  momentum: float
  running: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    positions, wide = fn.positions(x, 'switch norm'), fn.wide(x)
    mean_state, var_state, is_new = running_moments(self, x.shape[-1])
    mean, var = mean_state.value, var_state.value
    if train:
      mean, var = train_moments(self, x, mean_state, var_state, is_new)
    found = (fn.moments(x, positions), fn.moments(x, (*positions, x.ndim - 1)),
             (fn.along_channels(mean, x.ndim), fn.along_channels(var, x.ndim)))
    mixed = []
    for i, name in enumerate(('mean_weight', 'var_weight')):
      weights = jax.nn.softmax(self.param(name, nn.initializers.ones, (3,)))
      mixed.append(sum(weights[k] * found[k][i] for k in range(3)))
    return affine(self, (wide - mixed[0]) * jax.lax.rsqrt(mixed[1] + self.eps)).astype(x.dtype)
