"""Surgery on (params, state): fold, replace and remove normalizations of a trained model.

`fold_gains(model, variables, inputs)`, `fold_batch_norm`, `layer_to_rms` and `layer_to_pointwise`
give a `Converted`: the new model, its variables, and a report of how far the two functions are
apart on `inputs`, in float32 and in float64. What cannot be done is refused in one line.

For LayerNorms that a GPT-2 lost in training: `removal.schedule` says when each becomes linear,
and `gpt2_export.fold` and `trick` write the model without them.

They rest on functions of plain trees, for models of your own: `NormSite` and `Map` say where the
norms stand and which linear maps are around them, `wiring` derives it for the models here.
"""

from model_lib.transforms.convert import (
  Converted, convert, fold_batch_norm, fold_gains, layer_to_rms)
from model_lib.transforms.fit import Fitted, SiteFit, fit_pointwise, layer_to_pointwise
from model_lib.transforms.graph import Finding, find_normalizations
from model_lib.transforms.record import record
from model_lib.transforms.report import Precision, Report, compare
from model_lib.transforms.wiring import Map, NormSite, wiring

__all__ = [
  'Converted', 'Finding', 'Fitted', 'Map', 'NormSite', 'Precision', 'Report', 'SiteFit', 'compare',
  'convert', 'find_normalizations', 'fit_pointwise', 'fold_batch_norm', 'fold_gains',
  'layer_to_pointwise', 'layer_to_rms', 'record', 'wiring',
]
