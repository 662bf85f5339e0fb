from __future__ import annotations

import gc
from contextlib import suppress

from theworld.pipeline.cli.loading import no_garbage


def test_while_libraries_load_nothing_is_looked_through_for_garbage_and_after_it_all_new_things_are() -> None:
    frozen = gc.get_freeze_count()
    try:
        with suppress(ImportError), no_garbage():
            assert not gc.isenabled()
            raise ImportError("a library that is broken")
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        gc.disable()
        with no_garbage():
            pass
        assert not gc.isenabled(), "who had turned it off finds it off"
    finally:
        gc.enable()
        gc.unfreeze()
