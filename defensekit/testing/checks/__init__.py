"""The checks, a module for each kind. To import them is to register them, in the order in which they are reported."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
