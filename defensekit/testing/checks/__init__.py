"""The checks, a module for each kind. To import them is to register them, in the order in which they are reported."""

from importlib import import_module
from pkgutil import iter_modules

# What holds before a component is used comes first, then its ordinary use, then what its kind promises.
for _name in ("every", "conduct", *(module.name for module in iter_modules(__path__))):
    import_module(f"{__name__}.{_name}")
