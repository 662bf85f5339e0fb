"""Which reader the rows of a store are read by: files by their paths, objects by requests for their parts."""

from __future__ import annotations

from ...files.places.place import Place
from ..catalog import Catalog
from ..formats.base import ShardLayout
from .bucket_reader import BucketRowReader
from .row_reader import RowReader


def row_reader(place: Place, layout: ShardLayout, recipe_id: str, catalog: Catalog) -> RowReader:
    """The reader of a store at a place."""
    reader = RowReader if place.is_local else BucketRowReader
    return reader(place, layout, recipe_id, catalog)
