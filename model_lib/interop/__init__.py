"""Models from and to the files of other projects, without unpickling anything."""

from model_lib.interop.hugging_face import load_gpt2, not_stock, save_gpt2

__all__ = ['load_gpt2', 'not_stock', 'save_gpt2']
