"""A table of Arrow is read in either of its layouts, and damage in it is an error and never a wrong text."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files.tables import arrow as arrow_tables
from theworld.pipeline.files.tables.arrow import arrow_batches, fetch_hub, is_arrow, saved_files

from ....hub_server import small_hub

TEXTS = ["one", "two", "three", "four"]


@pytest.mark.parametrize("layout", [pa.ipc.new_stream, pa.ipc.new_file])
def test_both_layouts_give_the_columns_asked_for(tmp_path: Path, layout: type) -> None:
    table = pa.table({"text": TEXTS, "number": [1, 2, 3, 4]})
    with layout(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    [batch] = arrow_batches(tmp_path / "a.arrow", ["text"])
    assert batch.to_pydict() == {"text": TEXTS}


def test_a_damaged_offset_between_sound_ones_is_refused(tmp_path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    content = bytearray((tmp_path / "a.arrow").read_bytes())
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 3, 6, 11, 15))
    at = content.index(offsets) + 8  # the third: the first and the last stay as they are
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(pa.ArrowInvalid):
        list(arrow_batches(tmp_path / "a.arrow", ["text"]))


def test_arrow_is_told_by_the_ending_in_any_case() -> None:
    assert [is_arrow(name) for name in ("a.arrow", "A.ARROW", "a.parquet", "arrow")] == [True, True, False, False]


def test_a_folder_that_datasets_saved_is_known_by_its_state_and_gives_its_files(tmp_path: Path) -> None:
    assert saved_files(tmp_path) is None
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    files = saved_files(tmp_path / "saved")
    assert files is not None
    batches = [batch.to_pydict() for file in files for batch in arrow_batches(file, ["text"])]
    assert batches == [{"text": TEXTS}]


def test_the_size_of_a_data_set_is_said_before_its_download_and_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "set")
    fetched = datasets.load_from_disk(str(tmp_path / "set"))
    loads: list[str] = []  # the small Hub has no more of its interface than the facts that are asked for first
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (loads.append(caplog.text), fetched)[1])
    with small_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        hub.repositories["org/name"] = {"0" * 40: {"a.parquet": bytes(1000), "b.parquet": bytes(2000)}}
        hub.private["org/name"] = False
        assert fetch_hub("hf:org/name:train")
        assert loads == [""], "a small one is not worth a word"
        monkeypatch.setattr(arrow_tables, "HUB_NOTE_BYTES", 3000)
        fetch_hub("hf:org/name:train")
        assert "hf:org/name has 2 files of 2.9 KiB; what is not in the cache of datasets is downloaded now" in loads[1]
        for name, limit in (("MAX_HUB_FILES", 1), ("MAX_HUB_BYTES", 2999)):
            with monkeypatch.context() as patch:
                patch.setattr(arrow_tables, name, limit)
                with pytest.raises(ConfigError, match=r"hf:org/name has 2 files of 2\.9 KiB; the limits are"):
                    fetch_hub("hf:org/name:train")
        assert len(loads) == 2
    assert fetch_hub("hf:org/name:train"), "a Hub that does not answer is no reason not to look into the cache"


@pytest.mark.parametrize("splits", [["."], [".."], ["/"], "a.b/..", ["train", "x\0"]])
def test_a_saved_data_set_lists_nothing_but_its_own_folders(tmp_path: Path, splits: object) -> None:
    """One whose split is the folder itself would be listed for ever."""
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(ConfigError, match="incomplete"):
        saved_files(tmp_path)


def test_a_long_word_in_a_saved_data_set_is_cut_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_bytes(b'{"splits": "' + b"x" * 10_000)
    with pytest.raises(ConfigError) as caught:
        saved_files(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_folder_called_as_a_data_set_is_not_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"hf:org/name is ambiguous: there is a folder org/name here"):
        fetch_hub("hf:org/name")
