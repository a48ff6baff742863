"""The checks, a module for each kind. To import them is to register them, in the order in which they are reported."""

from importlib import import_module
from pkgutil import iter_modules

# `every` comes first: its checks are of components that were not used yet.
for _module in sorted(iter_modules(__path__), key=lambda module: module.name != "every"):
    import_module(f"{__name__}.{_module.name}")
