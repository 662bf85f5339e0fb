"""What is uploaded of a run: its files, a card with its figures, and nothing of the machine it was trained on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import RunError
from theworld.pipeline.files.hub.transfers import Snapshot
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.runs import hub
from theworld.train.runs.folder import load_run
from theworld.train.runs.hub import base_model, card, copy_run, prepare_upload, pull
from theworld.train.training.train import train

from ...miniatures.training import lay_out as lay_out_house
from ...miniatures.training import settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = lay_out_house(tmp_path_factory.mktemp("secretly"))
    train(settings(house, train_steps=2))
    evaluate(house / "run", device="cpu")
    return house / "run"


def test_what_is_uploaded_names_no_path_of_this_machine(run: Path, tmp_path: Path) -> None:
    names = prepare_upload(run, tmp_path, "somebody/reader")
    assert set(names) == {*hub.WEIGHTS, *hub.TEXTS, hub.CARD, "evaluation.json"}
    for path in tmp_path.iterdir():
        assert b"secretly" not in path.read_bytes(), path.name
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "lm"
    for name in hub.WEIGHTS:
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_the_card_says_what_it_is_and_how_well_it_answers(run: Path, tmp_path: Path) -> None:
    text = card(run, "somebody/reader")
    said = json.loads((run / "evaluation.json").read_text())
    meta = hub.read_meta(run)
    for kind, score in said["by_type"].items():
        interval = f"{score['low']:.3f} to {score['high']:.3f}"
        assert f"| {kind} | {score['accuracy']:.3f} | {interval} | {score['total']} |" in text
    assert all(word in text for word in (meta.recipe_id, "3 rollout steps, 32x48", meta.lm.identity, "2 updates of 5"))
    assert text.startswith("---\nlibrary_name: peft\ntags:")  # a folder's name is no model of the Hub's
    shutil.copytree(run, tmp_path / "unasked", ignore=shutil.ignore_patterns("evaluation*"))
    assert "Not evaluated" in card(tmp_path / "unasked", "somebody/reader")
    (tmp_path / "unasked" / "evaluation.json").write_text(json.dumps({**said, "left_out": 1200}))
    assert "shown: rollout, 1,200 questions left out" in card(tmp_path / "unasked", "somebody/reader")


def test_the_card_says_which_language_model_is_needed_and_how_to_name_it(run: Path, tmp_path: Path) -> None:
    content = hub.read_meta(run).lm.content
    text = card(run, "somebody/reader")
    assert 'theworld ask runs/pulled IMAGE "QUESTION" --lm PLACE' in text
    assert "that lay in `lm`, and no other; it is not part of this repository. `--lm PLACE`" in text
    assert f"by its content, {content}." in text
    shutil.copytree(run, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "theworld.json").read_text())
    commit = "org/lm@" + "0" * 40
    of_hub = {"source": commit, "identity": f"hub:{commit}"}
    for lm, words in (
        ({**of_hub, "content": content}, ["downloads from the Hub", "`--lm FOLDER`"]),
        (of_hub, ["downloads from the Hub"]),
        ({"source": "worldlet", "identity": content}, ["that comes with theworld"]),
    ):
        about["lm"] = lm
        (tmp_path / "run" / "theworld.json").write_text(json.dumps(about))
        text = card(tmp_path / "run", "somebody/reader")
        assert "--lm PLACE" not in text
        assert all(word in text for word in words)
        assert ("--lm FOLDER" in text) == (len(words) > 1)
    said = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "first rules" not in text
    del said["rules"]
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(said))
    assert "own words judged by the first rules" in card(tmp_path / "run", "somebody/reader")


def test_a_model_of_the_hub_is_the_card_s_base_model(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "theworld.json").read_text())
    about["lm"]["source"] = "google/gemma-2-2b-it@" + "0" * 40
    (tmp_path / "run" / "theworld.json").write_text(json.dumps(about))
    assert "\nbase_model: google/gemma-2-2b-it\n" in card(tmp_path / "run", "somebody/reader")
    assert base_model(hub.read_meta(tmp_path / "run")) == "google/gemma-2-2b-it"


HOSTILE = (
    "x/](javascript:1) <script>alert(1)</script> `a` | *b* _c_ ![i](http://e/x)\n---\nevil: 1\n# h\n```\n"
    "~~s~~ https://e.org www.e.org <https://e> &lt; $m$ \x1b[2J \u202e\u2028 \\"
)


def markup(text: str) -> list[str]:
    """The elements of a Markdown text, in their order, without what they hold."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    kinds = [kind for token in tokens for kind in (token.type, *(child.type for child in token.children or ()))]
    return [kind for kind in kinds if kind not in ("text", "text_special", "code_inline", "softbreak")]


@pytest.mark.parametrize("name", [HOSTILE, f"org/name\n{HOSTILE}", "`", "a`b|c", "", "<b>", "---"])
def test_a_stranger_s_run_adds_no_markup_and_no_field_to_the_card(run: Path, tmp_path: Path, name: str) -> None:
    cards: list[str] = []
    for number, text in enumerate(("plain", name)):
        folder = tmp_path / f"{number}"
        shutil.copytree(run, folder)
        about = json.loads((folder / "theworld.json").read_text())
        about["lm"] = {"source": text, "identity": text}
        about["store"]["keys_sha256"] = about["questions"]["sha256"] = about["questions"]["path"] = text
        about["versions"] = {f"torch{text}": text}
        about["config"] |= {"arm": text, "batch_size": text, "seed": text}
        (folder / "theworld.json").write_text(json.dumps(about))
        said = json.loads((folder / "evaluation.json").read_text())
        [score] = list(said["by_type"].values())[:1]
        said |= {"by_type": {f"kind {text}": score}, "split": f"split {text}", "arm": text, "steps": text}
        (folder / "evaluation.json").write_text(json.dumps(said))
        cards.append(card(folder, "org/name"))
    front, body = zip(*(text.removeprefix("---\n").split("\n---\n", 1) for text in cards), strict=True)
    assert yaml.safe_load(front[1]) == yaml.safe_load(front[0])
    assert markup(body[1]) == markup(body[0])
    assert not {"\x1b", "\u202e", "\u2028"} & set(cards[1])


def test_what_was_uploaded_comes_back_as_a_run_that_answers_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()
    shutil.copytree(run, tmp_path / "mine" / "run")
    (tmp_path / "mine" / "run" / "adaptive.json").write_text('{"run": "/secretly/run", "steps": 3}')
    prepare_upload(tmp_path / "mine" / "run", tmp_path / "hub", "somebody/reader")
    there = Snapshot("somebody/reader", "0" * 40, tmp_path / "hub")
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: there)
    assert pull("somebody/reader", tmp_path / "pulled") == tmp_path / "pulled"
    assert json.loads((tmp_path / "pulled" / "adaptive.json").read_text()) == {"run": "run", "steps": 3}  # its gate
    lm = str(run.parent / "lm")
    ids, mask = torch.tensor([[1, 4, 11, 5]]), torch.ones(1, 4, dtype=torch.long)
    latents = torch.randn(1, 16, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = (load_run(path, lm=lm, device="cpu").model for path in (run, tmp_path / "pulled"))
    assert torch.equal(ours(ids, mask, latents=latents).logits, theirs(ids, mask, latents=latents).logits)
    with pytest.raises(RunError, match="exists already"):
        pull("somebody/reader", tmp_path / "pulled")


def test_half_a_run_is_neither_uploaded_nor_taken(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "half", ignore=shutil.ignore_patterns("world_reader*"))
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=r"world_reader\.safetensors is missing"):
        prepare_upload(tmp_path / "half", tmp_path / "out", "somebody/reader")
    with pytest.raises(RunError, match=r"world_reader\.safetensors is missing"):
        copy_run(tmp_path / "half", tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


def test_a_dry_run_prints_the_card_and_uploads_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "upload", lambda *_, **__: pytest.fail("uploaded"))
    result = CliRunner().invoke(app, ["push", str(run), "somebody/reader", "--dry-run"])
    assert result.exit_code == 0
    assert "# somebody/reader" in result.output


def test_a_folder_whose_description_is_no_run_s_is_not_taken(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "odd")
    (tmp_path / "odd" / "theworld.json").write_text("{}")
    with pytest.raises(RunError, match="does not describe a run"):
        copy_run(tmp_path / "odd", tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize("name", ["metrics.json", "evaluation.json", "adapter_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"\xff", b"{", b"[]", b'{"a": ' * 3000, b'{"loss": 1, "train_steps": "x", "by_type": [1], "overall": 3}'],
)
def test_a_text_that_theworld_did_not_write_is_refused_by_its_name(
    run: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    (tmp_path / "up").mkdir()
    if name == "adapter_config.json" and content.startswith(b'{"loss"'):
        return  # any object may be uploaded: who loads it looks at it
    with pytest.raises(RunError, match=r"is not what theworld wrote: .*Train or evaluate again"):
        prepare_upload(tmp_path / "run", tmp_path / "up", "somebody/reader")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"train_steps": 1, "loss": [1]}'),
        ("metrics.json", '{"train_steps": "x", "loss": []}'),
        ("metrics.json", "[]"),
        ("metrics.json", '{"train_steps": 1, "loss": [], "x": ' + "[" * 990 + "]" * 990 + "}"),
        ("evaluation.json", '{"by_type": {"<b>": {"accuracy": "x"}}}'),
        ("evaluation.json", "[[1]]"),
    ],
)
def test_texts_that_no_training_wrote_are_refused_in_words(run: Path, tmp_path: Path, name: str, content: str) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / name).write_text(content)
    (tmp_path / "upload").mkdir()
    with pytest.raises(RunError, match="not what theworld wrote"):
        prepare_upload(copy, tmp_path / "upload", "org/name")
