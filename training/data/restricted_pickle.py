"""Reading the official CIFAR files, which are Python 2 pickles, without running what they say."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.errors import DataError


class _ByteType:
    """Stands for NumPy's dtype, which the pickle builds and then describes further."""

    def __setstate__(self, state: object) -> None:
        """Byte order and fields: bytes have neither."""


class _PixelArray:
    """Stands for NumPy's array, whose own `__setstate__` was not written for hostile input."""

    pixels: npt.NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, byte_type, is_fortran, raw = state
        if not isinstance(byte_type, _ByteType) or not isinstance(raw, bytes):
            raise ValueError("an array without its type or its bytes")
        if any(type(extent) is not int or extent < 0 for extent in shape):
            raise ValueError(f"an array of shape {shape!r}")
        self.pixels = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _byte_type(code: object, *_: object) -> _ByteType:
    if code not in (b"u1", "u1"):
        raise DataError(f"pixels must be stored as unsigned bytes (u1); the file asks for {code!r}")
    return _ByteType()


def _pixel_array(*_: object) -> _PixelArray:
    return _PixelArray()


# Every global of the official files. Only these two functions can be called; the class is passed as an
# argument that _pixel_array ignores, so a name stands for it.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _pixel_array,
    ("numpy._core.multiarray", "_reconstruct"): _pixel_array,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _byte_type,
}


# What Python 2 wrote at protocol 2 for such files. The last line is how later protocols name a global: let
# through, so that an attack written with them is refused by that name.
_OPCODES = frozenset(
    """
    PROTO MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINUNICODE
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
    BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD
    FRAME SHORT_BINUNICODE MEMOIZE STACK_GLOBAL
    """.split()  # noqa: SIM905 - a list literal of 34 texts reads worse
)


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise DataError(
                f"refused: the pickle asks for {module_name}.{global_name}, which no official CIFAR file "
                "does; nothing was executed. Download the file anew from its home page"
            ) from None


def _check_opcodes(content: bytes) -> None:
    """Refuse what makes the unpickler itself misbehave: opcodes no official file holds, and memo numbers of
    billions, for which it would allocate that many places."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES:
            raise DataError(f"refused: opcode {opcode.name} is in no official CIFAR file; download it anew")
        if opcode.name == "LONG_BINPUT" and (argument is None or argument > count):
            raise DataError(f"refused: memo number {argument} after {count} opcodes; download it anew")


def load_official_pickle(content: bytes, name: str) -> dict[bytes, Any]:
    """The dictionary of one official CIFAR file, keys and texts as bytes.

    Nothing named in the pickle is imported or called: dictionaries, lists, numbers, texts and uint8 arrays
    are all it can hold. Raises DataError naming the file (`name`) and, for a forbidden global, that global.
    """
    try:
        _check_opcodes(content)
        loaded = _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise DataError(
            f"{name}: truncated or no official CIFAR file ({type(error).__name__}: {error}); download it anew"
        ) from error
    if not isinstance(loaded, dict):
        raise DataError(f"{name}: holds a {type(loaded).__name__}; an official CIFAR file holds a dictionary")
    return {key: value.pixels if isinstance(value, _PixelArray) else value for key, value in loaded.items()}
