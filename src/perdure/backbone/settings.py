"""What a module's forward pass reads besides tensors: its settings, layer by layer, in words that can be compared.

Two modules with the same tensors and the same settings compute the same. What cannot be put into words is refused, so
that no feature is ever served for those of another module.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import PIL
import timm
import torch
from timm.models import is_model, split_model_name_tag
from torch import Tensor, nn

from perdure.backbone.default import hybrid_vit, lite0_stem
from perdure.data.reading import READING
from perdure.errors import BackboneError

# who upgrades them knows that features may change; their versions are part of a shelf's name
LIBRARIES: Final = ("torch", "torchvision", "timm", "perdure", "numpy", "builtins")
# told by timm about where a model comes from, or a choice of kernel: read by no forward pass
IGNORED: Final = {
    "pretrained_cfg", "default_cfg", "pretrained_model_args", "_model_args", "_traits", "feature_info", "fused_attn",
} | set(vars(nn.Module()))  # fmt: skip
PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice, enum.Enum, np.generic,
                torch.dtype, torch.device, torch.layout, torch.memory_format)  # fmt: skip


def tensors_of(root: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Every parameter and buffer by name, those too that no state dict holds.

    Args:
        root: any module.
        prefix: put before the names.
    """
    held = (root.named_parameters(remove_duplicate=False), root.named_buffers(remove_duplicate=False))
    return {prefix + name: tensor for named in held for name, tensor in named}


def digest_of(parts: tuple[object, ...], tensors: Mapping[str, Tensor]) -> str:
    """One hash of plain values and of tensors, bit for bit.

    Args:
        parts: values that ``repr`` tells apart.
        tensors: by name.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_of(root: nn.Module, prefix: str = "") -> dict[str, str]:
    """Every layer's kind and plain attributes, by its place.

    Args:
        root: any module; tensors that it registered are not looked at.
        prefix: put before the places.

    Raises:
        BackboneError: for an attribute or a hook that cannot be put into words, naming it.
    """
    found = {}
    for name, module in ((prefix + name, module) for name, module in root.named_modules()):
        found[name] = type(module).__qualname__ if _foreign(type(module)) else type(module).__name__
        if module.training:
            found[f"{name}.training"] = "True"
        for key, value in vars(module).items():
            if key not in IGNORED:
                found[f"{name}.{key}"] = _words(value, f"{name}.{key}")
        for i, hook in enumerate(_hooks(module)):
            found[f"{name}.hook {i}"] = _words(hook, f"a hook on {name or 'the model'}")
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            found[f"{name}.extra state"] = _words(module.get_extra_state(), f"extra state of {name}")
    return found


def unusual_settings(model: nn.Module, name: str) -> tuple[tuple[str, str | None], ...]:
    """Those of :func:`settings_of` that a stock model of that name has not, and those of its that are missing.

    Args:
        model: any model.
        name: as for :func:`stock_settings`; all settings are unusual for a name that is nobody's.
    """
    own, stock = settings_of(model), stock_settings(name)
    return tuple((k, own.get(k)) for k in sorted(own.keys() | stock.keys()) if own.get(k) != stock.get(k))


def who_computes(root: nn.Module) -> tuple[object, ...]:
    """Versions of torch, timm, Pillow and the reading rule, attention fused or not, and code that is no library's.

    Args:
        root: any module.
    """
    fused = [m.fused_attn for m in root.modules() if hasattr(m, "fused_attn")]
    return torch.__version__, timm.__version__, PIL.__version__, READING, fused, _code_of(root)


def _code_of(root: nn.Module) -> list[str]:
    """What the layers, hooks and functions do that belong to no library, in the order of the layers."""
    found = []
    for module in root.modules():
        held = [v for k, v in vars(module).items() if k not in IGNORED]
        for thing in (*type(module).__mro__, *_hooks(module), *held):
            for function in _functions(thing):
                names = {k: function.__globals__.get(k) for k in function.__code__.co_names}
                read = {k: v for k, v in names.items() if v is not None and isinstance(v, PLAIN)}
                found.append(f"{_code(function.__code__)} {read}")
    return found


@functools.lru_cache(maxsize=64)
def stock_settings(name: str) -> Mapping[str, str]:
    """The settings that a model of that name has as it is loaded; none if the name is nobody's.

    Args:
        name: ``default``, or a timm name, with or without the weights' tag.
    """
    if name != "default" and not is_model(split_model_name_tag(name)[0]):
        return {}
    with torch.random.fork_rng(devices=[]):
        try:  # without memory for weights; but a model may look at values while it is built, and here there are none
            with torch.device("meta"):
                return settings_of(_built(name).eval())
        except RuntimeError:
            return settings_of(_built(name).eval())


def _built(name: str) -> nn.Module:
    if name == "default":
        return hybrid_vit(lite0_stem(timm.create_model("efficientnet_lite0")))
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return model


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Those that change what a pass computes, but for the insertions', which are modules themselves."""
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not getattr(getattr(hook, "__self__", None), "is_insertion", False):
            yield hook


def _foreign(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] not in LIBRARIES


def _words(value: Any, where: str) -> str:
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, tuple | list | set | frozenset):
        parts = [_words(v, where) for v in value]
        return f"{type(value).__name__}({', '.join(sorted(parts) if isinstance(value, set | frozenset) else parts)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_words(k, where)}: {_words(v, where)}' for k, v in value.items())}}}"
    if isinstance(value, Tensor | np.ndarray):
        return f"tensor {digest_of((), {'': value if isinstance(value, Tensor) else torch.tensor(value)})}"
    if isinstance(value, functools.partial):
        return f"partial({', '.join(_words(v, where) for v in (value.func, value.args, value.keywords))})"
    if isinstance(value, types.FunctionType):
        cells = [_words(cell.cell_contents, where) for cell in value.__closure__ or ()]
        told = [_words(v, where) for v in (value.__defaults__, value.__kwdefaults__)]
        return f"{value.__module__}.{value.__qualname__}({', '.join(told + cells)})"
    if isinstance(value, type | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    got, hint = f"a {type(value).__name__}", "Keep it as a parameter, a buffer, a submodule, or in plain values"
    raise BackboneError("Backbone.fingerprint", where, "something that can be told apart", got, hint)


def _functions(thing: Any) -> Iterator[types.FunctionType]:
    """The functions of a class or a function that belong to no library."""
    if not _foreign(thing):
        return
    held = vars(thing).values() if isinstance(thing, type) else (thing,)
    for value in held:
        value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value  # properties, class methods
        while isinstance(value, functools.partial):
            value = value.func
        if isinstance(value, types.FunctionType):
            yield value


def _code(code: types.CodeType) -> str:
    """Of what is done and by what names, wherever it stands in a file."""
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    told = repr((code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars))
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
