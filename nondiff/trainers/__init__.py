"""How parameters move. One method, one file; nothing else in the library knows its name.

A name is imported when it is used for the first time. The names are those of `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
