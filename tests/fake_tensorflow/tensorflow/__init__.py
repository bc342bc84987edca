"""Stands in for TensorFlow on a child's path: whoever imports it fails."""
raise RuntimeError('TensorFlow was imported')
