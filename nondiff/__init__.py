"""Training for models that backpropagation alone cannot train.

A name is imported when it is used for the first time, so that `nondiff list` and its like need not wait for JAX. The
names are those of `__init__.pyi`.
"""

import os

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
# Its parts (`nondiff.core`) are attributes, too, but none of what `from nondiff import *` means.
_parts = {name for name in _names if os.path.isdir(os.path.join(os.path.dirname(__file__), name))}
__all__ = [name for name in _names if name not in _parts]  # pyright: ignore[reportUnsupportedDunderAll]
