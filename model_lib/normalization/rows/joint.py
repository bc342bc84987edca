"""Norm and activation in one layer."""

from __future__ import annotations

import functools

from model_lib.normalization.entry import BIAS, GAIN, SAME, Norm, NormParameter

_V = NormParameter('v', 1.0, 'channel')
_INIT = 'the activation behind it is the identity'
_PAPER = 'Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967'
_B = functools.partial(
  Norm, statistics='examples and positions, per channel; positions, per example and channel',
  train_inference='training: variance of the batch; inference: the running one',
  state=('var',), init_rule=_INIT, paper=_PAPER, causal=False, family='joint', batch=True,
  spatial=True)
_S = functools.partial(
  Norm, statistics='positions and the C/groups channels of a group, per example',
  train_inference=SAME, state=(), init_rule=_INIT, paper=_PAPER, causal=False, family='joint',
  conventions='as timm: biased variance, eps inside the root, 32 groups',
  options=(('groups', 32), ('eps', 1e-5)))
_RUNNING = ('as timm: eps inside both roots, momentum 0.1 of the new value, unbiased running '
            'variance')

JOINT = (
  _B(
    name='evonorm_b0',
    equation='g * x / max(sqrt(var_batch(x) + eps), v x + sqrt(var_instance(x) + eps)) + b',
    parameters=(GAIN, BIAS, _V), conventions=f'{_RUNNING}; eps 1e-3',
    options=(('eps', 1e-3), ('momentum', 0.1), ('running', 'unbiased')),
    invariances=('scale', 'channel_scale'),
  ),
  _B(
    name='evonorm_b1',
    equation='g * x / max(sqrt(var_batch(x) + eps), (x + 1) rms_instance(x)) + b',
    parameters=(GAIN, BIAS), conventions=f'{_RUNNING}; eps 1e-5',
    options=(('eps', 1e-5), ('momentum', 0.1), ('running', 'unbiased')),
  ),
  _B(
    name='evonorm_b2',
    equation='g * x / max(sqrt(var_batch(x) + eps), rms_instance(x) - x) + b',
    parameters=(GAIN, BIAS), conventions=f'{_RUNNING}; eps 1e-5',
    options=(('eps', 1e-5), ('momentum', 0.1), ('running', 'unbiased')),
    invariances=('scale', 'channel_scale'),
  ),
  _S(
    name='evonorm_s0', equation='g * x sigmoid(v x) / sqrt(var_group(x) + eps) + b',
    parameters=(GAIN, BIAS, _V),
  ),
  _S(
    name='evonorm_s1', equation='g * silu(x) / sqrt(var_group(x) + eps) + b',
    parameters=(GAIN, BIAS),
  ),
  _S(
    name='evonorm_s2', equation='g * silu(x) / sqrt(mean_group(x^2) + eps) + b',
    parameters=(GAIN, BIAS),
  ),
  Norm(
    name='norm_prop',
    equation='(relu(g x + b) - sqrt(1 / (2 pi))) / sqrt((1 - 1/pi) / 2)',
    statistics='none: those of relu(z), z ~ N(0, 1)',
    train_inference=SAME,
    parameters=(GAIN, BIAS), state=(),
    init_rule='kernels with columns of length 1 (weight=weight_norm with g = 1), inputs of mean 0 '
              'and variance 1; the activation behind it is the identity',
    conventions='closed form for relu alone',
    paper='Arpit et al. 2016, arXiv:1603.01431',
    causal=True, options=(), family='joint', confirmed=False,
  ),
)
