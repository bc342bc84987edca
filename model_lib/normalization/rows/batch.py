"""Norms with moments of a batch, and those that look at the test batch besides."""

from __future__ import annotations

import functools

from model_lib.normalization.entry import (
  BIAS, GAIN, PER_CHANNEL, UNIT_GAIN, Norm, NormParameter)

_MOMENTS = (('eps', 1e-5), ('momentum', 0.1), ('running', 'unbiased'))
_AS_BATCH = 'as batch in all that it does not name'
_row = functools.partial(
  Norm, statistics='examples and positions, per channel', parameters=(GAIN, BIAS),
  state=('mean', 'var'), init_rule=UNIT_GAIN, conventions=_AS_BATCH, causal=True, options=_MOMENTS,
  family='batch', batch=True, invariances=PER_CHANNEL)
_at_test = functools.partial(
  _row, causal=False, family='test_time', init_rule='the variables of a trained batch norm')
_REPOSITORY = 'Tomar et al. 2024, arXiv:2401.08328 (as a baseline)'

BATCH = (
  _row(
    name='batch',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b',
    train_inference='training: moments of the batch; inference: running moments',
    conventions='eps inside the root, 1e-5 as torch and flax (keras 1e-3); momentum is the '
                'weight of the NEW value, 0.1 as torch (flax and keras: weight of the old, 0.99); '
                'biased variance in training; running variance unbiased as torch and the paper '
                '(running=biased as flax and keras); stat_mode=frozen: running moments in '
                'training too; ghost(k): moments of every k examples, whose averages move the '
                'running ones; over devices, the moments are those of the whole array',
    paper='Ioffe, Szegedy 2015, arXiv:1502.03167; ghosts: Hoffer et al. 2017, arXiv:1705.08741',
    options=(*_MOMENTS, ('stat_mode', 'batch')),
    presets=(
      ('torch', (('eps', 1e-5), ('momentum', 0.1), ('running', 'unbiased'))),
      ('keras', (('eps', 1e-3), ('momentum', 0.01), ('running', 'biased'))),
      ('flax', (('eps', 1e-5), ('momentum', 0.01), ('running', 'biased'))),
      ('paper', (('running', 'unbiased'),))),
  ),
  _row(
    name='renorm',
    equation='g * ((x - mean(x)) / s * r + d) + b, s = sqrt(var(x) + eps), '
             'r = clip(s / running s), d = clip((mean(x) - running mean) / running s)',
    train_inference='training: as the equation; inference: running mean and running s',
    state=('mean', 'sigma', 'steps'),
    conventions='r in [1/rmax, rmax], d in [-dmax, dmax], limits that grow from 1 and 0 on a line '
                'over `ramp` steps (rmax 3, dmax 5 from memory; the length of the ramp is ours); '
                'running s, not its square; momentum as batch',
    paper='Ioffe 2017, arXiv:1702.03275',
    options=(('eps', 1e-5), ('momentum', 0.1), ('rmax', 3.0), ('dmax', 5.0), ('ramp', 1000)),
    confirmed=False, backward='surrogate', invariances=(),
  ),
  _row(
    name='batch_channel',
    equation='GN(g * (x - mean(x)) / sqrt(var(x) + eps) + b), GN a group norm with gain and bias',
    statistics='examples and positions, per channel; then positions and groups, per example',
    train_inference='training: moments of the batch first; inference: running moments',
    parameters=(GAIN, BIAS, NormParameter('group_scale', 1.0, 'channel'),
                NormParameter('group_bias', 0.0, 'channel')),
    conventions='as batch and group, one eps for both',
    paper='Qiao et al. 2019, arXiv:1903.10520',
    causal=False, options=(('groups', 8), *_MOMENTS),
    confirmed=False,
  ),
  _row(
    name='switch',
    equation='g * (x - m) / sqrt(v + eps) + b, m and v softmax mixtures of the moments of '
             'instance, whole example and batch',
    statistics='positions; positions and channels; examples and positions',
    train_inference='inference: running moments of the batch, the others as in training',
    parameters=(GAIN, BIAS, NormParameter('mean_weight', 1.0, 'statistic'),
                NormParameter('var_weight', 1.0, 'statistic')),
    conventions='mixing weights start equal; momentum 0.1 of the new value; biased variances',
    paper='Luo et al. 2018, arXiv:1806.10779',
    causal=False, spatial=True, invariances=('scale',),
  ),
  _row(
    name='whiten',
    equation='g * (x - mean(x)) S^(-1/2) + b, S = cov(x) + eps I, by Newton\'s iteration',
    statistics='examples and positions, all pairs of channels of a group',
    train_inference='training: moments of the batch; inference: running mean and S^(-1/2)',
    state=('mean', 'whitener'),
    conventions='Newton from S / tr S, 5 iterations; biased covariance; running S^(-1/2)',
    paper='Huang et al. 2018, 2019, arXiv:1804.08450, arXiv:1904.03441 (IterNorm)',
    options=(('groups', 1), ('iterations', 5), ('eps', 1e-5), ('momentum', 0.1)),
    confirmed=False, invariances=('scale', 'channel_shift'),
  ),
  _at_test(
    name='test_batch',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b, also at inference',
    train_inference='training: as batch; inference: moments of the test batch',
    conventions='biased variance of the test batch',
    paper=_REPOSITORY,
  ),
  _at_test(
    name='alpha_batch',
    equation='g * (x - m) / sqrt(v + eps) + b, m and v (1 - alpha) running + alpha batch',
    train_inference='training: as batch; inference: the mixture with the test batch',
    conventions='biased variance of the test batch',
    paper=_REPOSITORY,
    options=(*_MOMENTS, ('alpha', 0.1)),
  ),
  _at_test(
    name='ema_batch',
    equation='g * (x - m) / sqrt(v + eps) + b, m and v running, moved by the test batch first',
    train_inference='training: as batch; inference: the running moments move, then they are used',
    conventions='moves as in training, momentum and running variance as batch',
    paper=_REPOSITORY,
  ),
  _at_test(
    name='unmix',
    equation='g * (x - m_b) / sqrt(v_b + eps) + b, m_b and v_b of example b\'s mixture of K '
             'components and its own moments',
    statistics='positions, per example and channel; K components of the source',
    train_inference='training: as batch; inference: mixtures, whose components move',
    state=('mean', 'var', 'component_mean', 'component_var'),
    conventions='temperature 0.07, half of the source variance between the components; rate '
                '1 - (1 - momentum)^(B / batch_max); without positions as batch',
    paper='Tomar et al. 2024, arXiv:2401.08328',
    options=(*_MOMENTS, ('components', 16), ('batch_max', 64)),
    backward='surrogate',
  ),
)
