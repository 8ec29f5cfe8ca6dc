"""Multi-exit image classifiers, trained by self-distillation and served so that an easy image leaves early.

    from offramp import attach_exits, load_bundle

The names are imported when they are first used: `import offramp` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.models.attach import attach_exits
    from offramp.models.bundle import load_bundle

__all__ = ["attach_exits", "load_bundle"]

_MODULES = {"attach_exits": "offramp.models.attach", "load_bundle": "offramp.models.bundle"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
