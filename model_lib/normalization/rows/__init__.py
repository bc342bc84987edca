"""The rows of the registry by family; what each row says is in `normalization.entry`."""

from model_lib.normalization.rows.batch import BATCH
from model_lib.normalization.rows.conditional import CONDITIONAL
from model_lib.normalization.rows.joint import JOINT
from model_lib.normalization.rows.pointwise import POINTWISE
from model_lib.normalization.rows.spatial import SPATIAL
from model_lib.normalization.rows.token import TOKEN

ROWS = (*TOKEN, *BATCH, *SPATIAL, *POINTWISE, *JOINT, *CONDITIONAL)
