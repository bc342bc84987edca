"""Parametrizations: one table of init scales, multipliers and learning rates."""

from model_lib.parametrization.table import Parametrization, Rule, get_parametrization, names

__all__ = ['Parametrization', 'Rule', 'get_parametrization', 'names']
