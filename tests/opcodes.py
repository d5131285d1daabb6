"""Pickles of torch checkpoints, written opcode by opcode without torch."""

import pickle
from typing import Any


class Raw(bytes):
    """Pickle opcodes that `to_opcodes` copies as they are."""


def to_opcodes(value: Any) -> bytes:
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return b"}" + b"".join(to_opcodes(k) + to_opcodes(v) + b"s" for k, v in value.items())
    return pickle.dumps(value, 2)[2:-1]
