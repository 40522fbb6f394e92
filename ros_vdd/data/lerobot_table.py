# SPDX-License-Identifier: Apache-2.0
"""Parquet files as numpy arrays; a damaged or missing one is told in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ros_vdd.errors import DataError


def read_table(path: Path, leave_out: str | None = None, only: str | None = None):
    """Return a pyarrow Table.

    Args:
        path: the parquet file.
        leave_out: columns whose names begin so aren't read.
        only: the one column to read.

    Raises:
        DataError: pyarrow isn't installed, or the file is missing or damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise DataError("LeRobotDatasets need pyarrow; pip install 'ros_vdd[data]'") from error
    try:
        # A relative path with a colon would be taken for a URI.
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True) as file:  # checksums: where they are
            names = [n for n in file.schema_arrow.names if leave_out is None or not n.startswith(leave_out)]
            return file.read(columns=names if only is None else [only])
    except FileNotFoundError as error:
        raise DataError(f"no file '{path}', which the data set's tables name; copy the whole data set") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        cut = "; the program that wrote it was ended before it closed the file" if "magic bytes" in str(error) else ""
        raise DataError(f"'{path}' can't be read as parquet: {error}{cut}") from error


def column(table, name: str) -> np.ndarray:
    """Return a column as an array (N, ...), of lists of one length.

    Raises:
        DataError: a value is missing, the lists differ in length, or it holds no numbers.
    """
    import pyarrow as pa

    array = table[name].combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    shape: list[int] = [len(array)]
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise DataError(f"column '{name}' lacks {array.null_count} values")
        if not isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
            break
        values = array.flatten()
        count = len(array)
        size = len(values) // count if count else 0
        if isinstance(array, (pa.ListArray, pa.LargeListArray)) and count:
            lengths = array.value_lengths().to_numpy(zero_copy_only=False)
            if (lengths != size).any():
                odd = int(np.flatnonzero(lengths != lengths[0])[0])
                raise DataError(f"column '{name}' has {lengths[odd]} values at row {odd} and {lengths[0]} at row 0")
        shape.append(size)
        array = values
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise DataError(f"column '{name}' holds {array.type}; expected numbers")
    # A frame of shape (1,) and one of shape () are told apart by some writers only.
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(_shape(shape))


def _shape(shape: Sequence[int]) -> Sequence[int]:
    return [*shape[:1], *(n if n else 0 for n in shape[1:])]
