"""Has zarr-python import the data type bfloat16 (zarr_bfloat16.py) in those releases that would not.

`zarr.data_type` is the group of entry points meant for it. Up to zarr 3.1.6, the last for Python 3.11, zarr lists that
group and never loads it; zarr 3.4.2 loads it. The group `zarr.buffer` they all load, with the first metadata of a
group: there they find their own Buffer, which changes nothing, and importing this module registers the type. Still
missed is an array that a process opens before any group: then `import theworld.pipeline.store.formats.zarr_bfloat16`
first.
"""

import contextlib

from zarr.core.buffer.cpu import Buffer

__all__ = ["Buffer"]

with contextlib.suppress(ImportError):  # zarr 3.0 takes no data types, and must go on working
    from . import zarr_bfloat16 as _  # noqa: F401
