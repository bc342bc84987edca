"""Every normalization layer once more, in float64 NumPy, from its equation.

REFERENCES[name](x, p, s, o, train, c) -> (result, state after the call): x [B, ..., C], p its
parameters, s its state, o its options, c the condition. `held` are the quantities that a surrogate
gradient holds: a reference of such a norm takes them as `held=` and gives them with `hold=True`.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special


def _pos(x):
  return tuple(range(1, x.ndim - 1))


def _batch(x):
  return tuple(range(x.ndim - 1))


def _std(x, axes, eps):
  m = x.mean(axes, keepdims=True)
  return (x - m) / np.sqrt(x.var(axes, keepdims=True) + eps)


def _affine(y, p):
  return y * p['scale'] + p['bias']


def _grouped(x, groups):
  """x as [B, ..., G, C/G]; the axes of a group's statistics."""
  split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
  return split, (*range(1, x.ndim - 1), x.ndim)


def _group_std(x, groups, eps):
  split, axes = _grouped(x, groups)
  return _std(split, axes, eps).reshape(x.shape)


def _stateless(f):
  return lambda x, p, s, o, train, c: (f(x, p, o), s)


def layer(x, p, o):
  return _affine(_std(x, -1, o['eps']), p)


def rms(x, p, o):
  gain = p['scale'] + (1 if o['gain'] == 'one_plus' else 0)
  return gain * x / np.sqrt((x ** 2).mean(-1, keepdims=True) + o['eps'])


def prms(x, p, o):
  part = x[..., :math.floor(o['p'] * x.shape[-1])]
  return p['scale'] * x / (np.sqrt((part ** 2).mean(-1, keepdims=True)) + o['eps'])


def _length(x):
  return np.linalg.norm(x, axis=-1, keepdims=True)


def lrn(x, p, o):
  n, channels = o['n'], x.shape[-1]
  total = np.zeros_like(x)
  for i in range(channels):
    for j in range(i - n // 2, i - n // 2 + n):
      if 0 <= j < channels:
        total[..., i] += x[..., j] ** 2
  factor = o['alpha'] / (n if o['convention'] == 'torch' else 1)
  return x / (o['k'] + factor * total) ** o['beta']


def _window_mean(x, n):
  low = n // 2
  return np.stack([x[..., max(i - low, 0):i - low + n].mean(-1) for i in range(x.shape[-1])], -1)


def divisive(x, p, o):
  v = x - _window_mean(x, o['n'])
  return _affine(v / np.sqrt(p['sigma'] ** 2 + _window_mean(v ** 2, o['n'])), p)


def frozen_layer(x, p, s, o, train, c):
  sigma = np.full(x.shape[1:2] + (1,), s['sigma']) if x.ndim == 3 else s['sigma']
  if x.ndim == 3:
    sigma[0] = s['sigma_first']
  return _affine((x - x.mean(-1, keepdims=True)) / sigma, p), s


def instance(x, p, o):
  y = _std(x, _pos(x), o['eps'])
  return _affine(y, p) if o['affine'] else y


def frn(x, p, o):
  eps = o['eps'] + (abs(p['eps']) if o['learned_eps'] else 0)
  return _affine(x / np.sqrt((x ** 2).mean(_pos(x), keepdims=True) + eps), p)


def _moved(s, mean, var, count, o):
  unbiased = var * count / (count - 1) if o['running'] == 'unbiased' else var
  m = o['momentum']
  return {**s, 'mean': (1 - m) * s['mean'] + m * mean, 'var': (1 - m) * s['var'] + m * unbiased}


def _source(x, s, o, train):
  """Mean, variance and the state after a call of a batch norm."""
  if not train:
    return s['mean'], s['var'], s
  mean, var = x.mean(_batch(x)), x.var(_batch(x))
  return mean, var, _moved(s, mean, var, x[..., 0].size, o)


def batch(x, p, s, o, train, c):
  mode = o.get('stat_mode', 'batch')
  if train and mode.startswith('ghost'):
    size = int(mode[6:-1])
    parts = [x[i:i + size] for i in range(0, len(x), size)]
    y = np.concatenate([_std(part, _batch(x), o['eps']) for part in parts])
    after = [_moved(s, part.mean(_batch(x)), part.var(_batch(x)), part[..., 0].size, o)
             for part in parts]
    return _affine(y, p), {k: np.mean([a[k] for a in after], 0) for k in s}
  mean, var, after = _source(x, s, o, train and mode == 'batch')
  return _affine((x - mean) / np.sqrt(var + o['eps']), p), after


def renorm(x, p, s, o, train, c, held=None, hold=False):
  if not train:
    return _affine((x - s['mean']) / s['sigma'], p), s
  mean, sd = x.mean(_batch(x)), np.sqrt(x.var(_batch(x)) + o['eps'])
  done = min(1, s['steps'] / o['ramp']) if o['ramp'] else 1
  rmax, dmax = 1 + (o['rmax'] - 1) * done, o['dmax'] * done
  now = (np.clip(sd / s['sigma'], 1 / rmax, rmax),
         np.clip((mean - s['mean']) / s['sigma'], -dmax, dmax))
  if hold:
    return now
  r, d = held or now
  m = o['momentum']
  after = {'mean': (1 - m) * s['mean'] + m * mean, 'sigma': (1 - m) * s['sigma'] + m * sd,
           'steps': s['steps'] + 1}
  return _affine((x - mean) / sd * r + d, p), after


def batch_channel(x, p, s, o, train, c):
  y, after = batch(x, p, s, o, train, c)
  return _group_std(y, o['groups'], o['eps']) * p['group_scale'] + p['group_bias'], after


def switch(x, p, s, o, train, c):
  mean, var, after = _source(x, s, o, train)
  every = (*_pos(x), x.ndim - 1)
  means = x.mean(_pos(x), keepdims=True), x.mean(every, keepdims=True), mean
  variances = x.var(_pos(x), keepdims=True), x.var(every, keepdims=True), var
  m = sum(w * v for w, v in zip(special.softmax(p['mean_weight']), means, strict=True))
  v = sum(w * v for w, v in zip(special.softmax(p['var_weight']), variances, strict=True))
  return _affine((x - m) / np.sqrt(v + o['eps']), p), after


def whiten(x, p, s, o, train, c):
  size, m = x.shape[-1] // o['groups'], o['momentum']
  mean, parts, after = s['mean'], [], {k: v.copy() for k, v in s.items()}
  if train:
    mean = x.reshape(-1, x.shape[-1]).mean(0)
    after['mean'] = (1 - m) * s['mean'] + m * mean
  for g in range(o['groups']):
    z = (x - mean).reshape(-1, x.shape[-1])[:, g * size:(g + 1) * size]
    w = s['whitener'][g]
    if train:
      cov = z.T @ z / len(z) + o['eps'] * np.eye(size)
      w = np.eye(size)
      for _ in range(o['iterations']):
        w = (3 * w - np.linalg.matrix_power(w, 3) @ cov / np.trace(cov)) / 2
      w = w / math.sqrt(np.trace(cov))
      after['whitener'][g] = (1 - m) * s['whitener'][g] + m * w
    parts.append(z @ w)
  return _affine(np.concatenate(parts, -1).reshape(x.shape), p), after


def alpha_batch(x, p, s, o, train, c):
  if train:
    return batch(x, p, s, o, train, c)
  a = o.get('alpha', 1.0)
  mean = (1 - a) * s['mean'] + a * x.mean(_batch(x))
  var = (1 - a) * s['var'] + a * x.var(_batch(x))
  return _affine((x - mean) / np.sqrt(var + o['eps']), p), s


def ema_batch(x, p, s, o, train, c):
  if train:
    return batch(x, p, s, o, train, c)
  _, _, after = _source(x, s, o, True)
  return batch(x, p, after, o, False, c)


def unmix(x, p, s, o, train, c, held=None, hold=False):
  if train or x.ndim < 3:
    return batch(x, p, s, o, train, c)
  mk, vk = s['component_mean'], s['component_var']
  y, moved, probabilities = np.empty_like(x), [], []
  for b, one in enumerate(x):
    mean, var = one.mean(tuple(range(one.ndim - 1))), one.var(tuple(range(one.ndim - 1)))
    cosine = mk @ mean / np.linalg.norm(mk, axis=1) / np.linalg.norm(mean)
    q = (special.softmax(cosine / 0.07) if held is None else held[b])[:, None]
    probabilities.append(q[:, 0])
    m, w = (1 - q) * mk + q * mean, (1 - q) * vk + q * var
    total = w.mean(0) + (m ** 2).mean(0) - m.mean(0) ** 2
    y[b] = (one - m.mean(0)) / np.sqrt(total + o['eps'])
    moved.append((q * (mean - mk), q * (var - vk)))
  if hold:
    return probabilities
  rate = 1 - (1 - o['momentum']) ** (len(x) / o['batch_max'])
  after = {**s, 'component_mean': mk + rate * np.mean([d for d, _ in moved], 0),
           'component_var': vk + rate * np.mean([d for _, d in moved], 0)}
  return _affine(y, p), after


FUNCTIONS = {
  'isru': lambda z: z / np.sqrt(z ** 2 + 1), 'arctan': lambda z: np.arctan(z) * 2 / np.pi,
  'expsign': lambda z: np.sign(z) * (1 - np.exp(-abs(z))),
  'satursin': lambda z: np.where(abs(z) < np.pi / 2, np.sin(z), np.sign(z)),
  'smoothsign': lambda z: z / (1 + abs(z)),
  'linear_clip': lambda z: np.minimum(1, np.maximum(-1, z)),
}


def _inner(x, p):
  return p['alpha'] * x + p['shift']


def _sigmoid(z):
  return 1 / (1 + np.exp(-z))


def _evonorm_b(other):
  def f(x, p, s, o, train, c):
    var = s['var']
    after = s
    if train:
      _, var, after = _source(x, {'mean': 0, **s}, o, True)
      after = {'var': after['var']}
    return _affine(x / np.maximum(np.sqrt(var + o['eps']), other(x, p, o['eps'])), p), after
  return f


def _evonorm_s(variant):
  def f(x, p, o):
    split, axes = _grouped(x, o['groups'])
    square = ((split ** 2).mean(axes, keepdims=True) if variant == 's2'
              else split.var(axes, keepdims=True))
    s = np.broadcast_to(np.sqrt(square + o['eps']), split.shape).reshape(x.shape)
    return _affine(x * _sigmoid((p['v'] if variant == 's0' else 1) * x) / s, p)
  return f


def _rms_instance(x, eps):
  return np.sqrt((x ** 2).mean(_pos(x), keepdims=True) + eps)


def _along(vector, x):
  return vector.reshape(len(x), *(1,) * (x.ndim - 2), -1) if vector.ndim < x.ndim else vector


def _parts(p, c, x, n):
  mapped = c @ p['kernel'] + p['bias']
  return [_along(mapped[..., i * x.shape[-1]:(i + 1) * x.shape[-1]], x) for i in range(n)]


def adain(x, p, s, o, train, c):
  sd, mean = np.sqrt(c.var(_pos(c)) + o['eps']), c.mean(_pos(c))
  return _along(sd, x) * _std(x, _pos(x), o['eps']) + _along(mean, x), s


def film(x, p, s, o, train, c):
  gain, bias = _parts(p, c, x, 2)
  return (1 + gain) * x + bias, s


def spade(x, p, s, o, train, c):
  mean, var, after = _source(x, s, o, train)
  gain, bias = _parts(p, c, x, 2)
  return (1 + gain) * (x - mean) / np.sqrt(var + o['eps']) + bias, after


def adaln_zero(x, p, s, o, train, c):
  gain, bias, gate = _parts(p, c, x, 3)
  return (1 + gain) * _std(x, -1, o['eps']) + bias + 0 * gate, s


REFERENCES = {
  'none': _stateless(lambda x, p, o: x),
  'layer': _stateless(layer), 'rms': _stateless(rms), 'prms': _stateless(prms),
  'unit': _stateless(lambda x, p, o: x / np.maximum(_length(x), o['eps'])),
  'scale_norm': _stateless(lambda x, p, o: p['scale'] * x / np.maximum(_length(x), o['eps'])),
  'pixel': _stateless(lambda x, p, o: x / np.sqrt((x ** 2).mean(-1, keepdims=True) + o['eps'])),
  'pono': _stateless(lambda x, p, o: _std(x, -1, o['eps'])),
  'simple': _stateless(
    lambda x, p, o: p['scale'] * x / np.sqrt(x.var(-1, keepdims=True) + o['eps'])),
  'frozen_layer': frozen_layer, 'lrn': _stateless(lrn), 'divisive': _stateless(divisive),
  'group': _stateless(lambda x, p, o: _affine(_group_std(x, o['groups'], o['eps']), p)),
  'instance': _stateless(instance), 'frn': _stateless(frn),
  'frn_tlu': _stateless(lambda x, p, o: np.maximum(frn(x, p, o), p['threshold'])),
  'batch': batch, 'renorm': renorm, 'batch_channel': batch_channel, 'switch': switch,
  'whiten': whiten, 'test_batch': alpha_batch, 'alpha_batch': alpha_batch,
  'ema_batch': ema_batch, 'unmix': unmix,
  'dyt': _stateless(lambda x, p, o: _affine(np.tanh(p['alpha'] * x), p)),
  'derf': _stateless(lambda x, p, o: _affine(special.erf(_inner(x, p)), p)),
  'pointwise': _stateless(lambda x, p, o: _affine(FUNCTIONS[o['f']](_inner(x, p)), p)),
  'affine': _stateless(lambda x, p, o: _affine(x, p)),
  'soft_cap': _stateless(lambda x, p, o: o['cap'] * np.tanh(x / o['cap'])),
  'evonorm_b0': _evonorm_b(
    lambda x, p, eps: p['v'] * x + np.sqrt(x.var(_pos(x), keepdims=True) + eps)),
  'evonorm_b1': _evonorm_b(lambda x, p, eps: (x + 1) * _rms_instance(x, eps)),
  'evonorm_b2': _evonorm_b(lambda x, p, eps: _rms_instance(x, eps) - x),
  **{f'evonorm_{v}': _stateless(_evonorm_s(v)) for v in ('s0', 's1', 's2')},
  'norm_prop': _stateless(lambda x, p, o: (np.maximum(_affine(x, p), 0) - 0.3989422804014327)
                          / 0.5838193701035489),
  'adain': adain, 'film': film, 'spade': spade, 'adaln_zero': adaln_zero,
}
