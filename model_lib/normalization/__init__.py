"""Normalizations by name, where they stand, and what they compute."""

from model_lib.normalization.placement import BlockSpec, block
from model_lib.normalization.registry import Norm, NormParameter, get_norm, names

__all__ = ['BlockSpec', 'Norm', 'NormParameter', 'block', 'get_norm', 'names']
