"""Whether a kernel, or a product of weights, may stand in for modules."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is the ``forward`` of ``kind`` on its parameters and nothing more.

    Not so are subclasses (which a parametrised module is too), modules of another kind in its place (adapters,
    quantised layers), a ``forward`` set on the instance, and hooks: they want to see or change what goes in or out, or
    make the weight anew before each call (pruning, the older ``weight_norm``). Such modules must be called.
    """
    return type(module) is kind and not _is_watched(module)


def is_unwatched(*modules: nn.Module) -> bool:
    """Whether no module among these, or inside them, has hooks or a ``forward`` of its own."""
    return not any(_is_watched(part) for module in modules for part in module.modules())


def _is_watched(module: nn.Module) -> bool:
    own = vars(module)
    if "forward" in own or any(own.get(name) for name in _HOOKS):
        return True
    return any(getattr(torch_module, f"_global{name}", None) for name in _HOOKS)
