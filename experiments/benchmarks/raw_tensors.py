"""Reads a safetensors file with nothing but the standard library, for torch_network.py.

The form: the length of a header, 8 bytes; the header, JSON; then the arrays, each of
them in C order at the place that the header tells.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class RawTensor:
    """An array that was not interpreted yet.

    Attributes:
      dtype: as safetensors calls it, "F16" or "F32".
      shape: of the array.
      content: its bytes, little endian, which may be written to.
    """

    dtype: str
    shape: tuple[int, ...]
    content: bytearray


def read_tensors(path: Path) -> tuple[dict[str, RawTensor], dict[str, Any]]:
    """Reads a file of weights.

    Args:
      path: written by covjax.export.safetensors.

    Returns:
      Names → arrays, and the config that the file tells.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    about = json.loads(header.pop("__metadata__")["covjax"])
    tensors = {}
    for name, told in header.items():
        begin, end = (start + offset for offset in told["data_offsets"])
        array = bytearray(content[begin:end])
        tensors[name] = RawTensor(told["dtype"], tuple(told["shape"]), array)
    return tensors, about["config"]
