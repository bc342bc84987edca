"""Parametrizations: one table of init scales, multipliers and learning rates."""

from model_lib.parametrization.row import Branch, Learned, Parametrization, Rule
from model_lib.parametrization.table import get_parametrization, names

__all__ = ['Branch', 'Learned', 'Parametrization', 'Rule', 'get_parametrization', 'names']
