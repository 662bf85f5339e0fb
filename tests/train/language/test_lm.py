"""Language models are found, identified, checked and adapted; what cannot be used is refused in seconds."""

import hashlib
import json
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers

from theworld.pipeline.errors import ConfigError
from theworld.train.language import lm as lm_module
from theworld.train.language.architectures import TRIED
from theworld.train.language.lm import (
    LanguageModel,
    attention_of,
    embedding_rms,
    load_language_model,
    load_tokenizer_only,
    unread_parts,
)
from theworld.train.language.lora import add_lora, merge_adapters
from theworld.train.language.weights import Weights, find_weights
from theworld.train.language.world_check import check_world_inputs
from theworld.train.reader.attention import HeadSizes
from theworld.train.reader.segments import FLEX

from ...miniatures.language_models import save_tried_lm, tried_lm
from ...miniatures.lm import mini_lm, mini_tokenizer, save_mini_lm
from ...patience import ends_within

CPU = torch.device("cpu")


def test_a_folders_identity_is_its_content_wherever_it_lies(tmp_path: Path) -> None:
    first, second = save_mini_lm(tmp_path / "a"), save_mini_lm(tmp_path / "b")
    assert find_weights(str(first)).identity == find_weights(str(second)).identity
    assert find_weights(str(first)).identity.startswith("sha256:")
    assert find_weights(str(first)).identity != find_weights(str(save_mini_lm(tmp_path / "c", seed=1))).identity


@pytest.mark.parametrize("name", ["notes.json", "trainer_state.json", "README.md", "model.py", "old.model", "x.jinja"])
def test_a_file_that_is_never_loaded_is_no_part_of_a_model(tmp_path: Path, name: str) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    before = find_weights(str(folder))
    (folder / name).write_text("{}")
    after = find_weights(str(folder))
    assert after.identity == before.identity
    assert after.is_same(before.identity)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_loaded_makes_another_model(tmp_path: Path, name: str) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    before = find_weights(str(folder))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" ")
    assert find_weights(str(folder)).identity != before.identity
    assert not find_weights(str(folder)).is_same(before.identity, before.content)
    (folder / name).write_bytes(content)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    assert find_weights(str(folder)).identity != before.identity


def test_the_identity_of_earlier_versions_is_still_that_model(tmp_path: Path) -> None:
    """They hashed every *.json, *.safetensors, *.model and *.jinja of the folder."""
    folder = save_mini_lm(tmp_path / "lm")
    (folder / "notes.json").write_text("{}")
    lines = (f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(folder.iterdir()))
    recorded = f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    found = find_weights(str(folder))
    assert found.identity != recorded
    assert found.is_same(recorded)
    assert not found.is_same("sha256:" + "0" * 64)
    assert not found.is_same("hub:org/lm@" + "0" * 40)


def test_no_name_means_the_embedded_model_and_it_loads() -> None:
    weights = find_weights(None)
    assert weights.source == "worldlet"
    lm = load_language_model(weights, device=CPU, dtype=torch.float32)
    assert type(lm.model).__name__ == "Gemma2ForCausalLM"
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.unknown_words("where will the ball land? left middle right") == []


def test_the_hub_out_of_reach_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused = pytest.raises(ConfigError, match=r"google/gemma-2-2b-it.*cannot be reached.*--lm")
    with refused, ends_within(20):
        find_weights("google/gemma-2-2b-it")


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a folder here nor a Hub id"):
        find_weights(str(tmp_path / "none" / "deeper"))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        find_weights(str(tmp_path))


def test_an_architecture_nobody_checked_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_mini_lm(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(
        ConfigError, match=r"GPT2LMHeadModel.*Gemma2ForCausalLM, .*Qwen3ForCausalLM and SmolLM3ForCausalLM"
    ):
        load_language_model(find_weights(str(folder)), device=CPU, dtype=torch.float32)


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    folder = save_mini_lm(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_language_model(find_weights(str(folder)), device=CPU, dtype=torch.float32)


def test_a_model_that_rescales_vectors_on_their_way_in_is_refused() -> None:
    model = mini_lm()
    check_world_inputs(model)

    def as_transformers_4_did(_module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs.get("inputs_embeds") is not None:
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"] * model.config.hidden_size**0.5
        return args, kwargs

    model.register_forward_pre_hook(as_transformers_4_did, with_kwargs=True)
    with pytest.raises(ConfigError, match="changes inputs_embeds inside Gemma2ForCausalLM"):
        check_world_inputs(model)


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save_mini_lm(tmp_path)
    larger = mini_tokenizer()
    larger.add_tokens(["Where", "balls", "land?"])
    larger.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"is another model's: it gives token 2\d, and the model has 24 embeddings"):
        load_language_model(find_weights(str(folder)), device=CPU, dtype=torch.float32)


def test_a_gguf_file_is_known_by_its_content_and_what_reads_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF of something")
    weights = find_weights(str(file))
    assert (weights.folder, weights.gguf, weights.source) == (tmp_path, "model.gguf", str(file))
    assert weights.identity == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    monkeypatch.setattr(lm_module, "find_spec", lambda _: None)
    for load in (load_tokenizer_only, partial(load_language_model, device=CPU, dtype=torch.float32)):
        with pytest.raises(ConfigError, match=r"needs the library gguf: pip install -e '\.\[gguf\]' in the folder"):
            load(weights)


def test_adapters_of_a_hub_model_name_its_repository_and_commit(tmp_path: Path) -> None:
    commit = "c" * 40
    weights = Weights(tmp_path, f"google/gemma-2-2b-it@{commit}", f"hub:google/gemma-2-2b-it@{commit}")
    adapted = add_lora(LanguageModel(mini_lm(), mini_tokenizer(), weights), rank=2, alpha=4, dropout=0.0)
    adapted.model.save_pretrained(tmp_path, save_embedding_layers=False)  # else peft asks the Hub
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("google/gemma-2-2b-it", commit)


def test_the_embeddings_size_is_measured_behind_their_scaling() -> None:
    model = mini_lm()
    table = model.get_input_embeddings().weight
    expected = table.square().mean().sqrt().item() * model.config.hidden_size**0.5
    assert embedding_rms(model) == pytest.approx(expected, rel=1e-5)


def test_the_first_token_without_an_embedding_is_already_another_model_s(tmp_path: Path) -> None:
    folder = save_mini_lm(tmp_path)
    larger = mini_tokenizer()
    larger.add_tokens(["Where"])  # its token is 24, one behind the last embedding
    larger.save_pretrained(folder)
    with pytest.raises(ConfigError, match="it gives token 24, and the model has 24 embeddings"):
        load_language_model(find_weights(str(folder)), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("missing", ["bos_token", "eos_token"])
def test_a_tokenizer_without_a_first_or_a_last_token_is_refused(tmp_path: Path, missing: str) -> None:
    folder = save_mini_lm(tmp_path)
    file = folder / "tokenizer_config.json"
    written = json.loads(file.read_text())
    del written[missing]
    file.write_text(json.dumps(written))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, f"{missing}_id": None}))
    weights = find_weights(str(folder))
    for load in (load_tokenizer_only, partial(load_language_model, device=CPU, dtype=torch.float32)):
        with pytest.raises(ConfigError, match=r"names no <bos> or no <eos>.*tokenizer_config\.json"):
            load(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_only_into_weights_that_hold_all_of_what_they_add(dtype: torch.dtype) -> None:
    weights = Weights(Path("mini"), "mini", "sha256:mini")
    lm = add_lora(LanguageModel(mini_lm().to(dtype), mini_tokenizer(), weights), rank=2, alpha=4, dropout=0.0)
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 4, 11, 5]])
    frozen = {name: value.clone() for name, value in lm.model.named_parameters() if "lora_" not in name}
    with torch.no_grad():
        before = lm.model(input_ids=ids).logits
        merge_adapters(lm)
        after = lm.model(input_ids=ids).logits
    now = dict(lm.model.named_parameters())
    changed = [name for name, value in frozen.items() if not torch.equal(value, now[name])]
    assert bool(changed) == (dtype == torch.float32)
    assert all(".base_layer." in name for name in changed)
    torch.testing.assert_close(after, before)


def test_sdpa_is_refused_for_a_model_whose_attention_it_computes_wrongly(tmp_path: Path) -> None:
    weights = find_weights(str(save_mini_lm(tmp_path)))
    with pytest.raises(ConfigError, match="caps its attention scores, and sdpa does not"):
        load_language_model(weights, device=CPU, dtype=torch.float32, attention="sdpa")
    lm = load_language_model(weights, device=CPU, dtype=torch.float32)
    assert lm.settings._attn_implementation == "eager"


TEXT_CLASSES = [name for name, tried in TRIED.items() if not tried.text_class and "Conditional" not in name]


@pytest.mark.parametrize("architecture", TEXT_CLASSES)
def test_every_language_model_that_was_tried_is_loaded_and_passes_the_check(tmp_path: Path, architecture: str) -> None:
    folder = save_tried_lm(tmp_path, architecture)
    lm = load_language_model(find_weights(str(folder)), device=CPU, dtype=torch.float32)
    assert type(lm.model).__name__ == architecture
    ids = torch.tensor([[1, 4, 5, 6]])
    torch.testing.assert_close(lm.model(input_ids=ids).logits, tried_lm(architecture)(input_ids=ids).logits)
    assert lm.image_tokens == 0


def test_of_a_multimodal_gemma_4_the_text_part_alone_is_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_tried_lm(tmp_path, "Gemma4ForCausalLM")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Gemma4ForConditionalGeneration"]
    capfd.readouterr()
    lm = load_language_model(find_weights(str(folder)), device=CPU, dtype=torch.float32)
    assert "vision" not in capfd.readouterr().err  # transformers would list each of its parameters
    assert "only its text part is read; its parts for images and sound are left out" in str(unread_parts(lm.weights))
    assert type(lm.model)._keys_to_ignore_on_load_unexpected is None
    assert not [name for name, _ in lm.model.named_parameters() if "vision" in name]
    only = load_tokenizer_only(find_weights(str(folder)))
    assert only.prompt_ids("where is the ball ?") == lm.prompt_ids("where is the ball ?")


def test_an_adapter_beside_a_language_model_is_left_out_and_named(tmp_path: Path) -> None:
    folder = save_tried_lm(tmp_path, "Gemma2ForCausalLM")
    assert unread_parts(find_weights(str(folder))) is None
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "adapter_config.json) is not read" in str(unread_parts(find_weights(str(folder))))


@pytest.mark.parametrize("named", [True, False], ids=["qwen", "smollm"])
def test_a_start_of_text_that_the_config_alone_names_is_taken(tmp_path: Path, named: bool) -> None:
    """Qwen's tokenizers name no <bos>, and its configs name a token of theirs, SmolLM3's one that is nowhere else."""
    folder = save_tried_lm(tmp_path, "Qwen3ForCausalLM")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    settings["extra_special_tokens"] = ["<bos>"] if named else []
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    lm = load_language_model(find_weights(str(folder)), device=CPU, dtype=torch.float32)
    assert lm.prompt_ids("where is the ball ?")[0] == 1


def test_a_model_that_sees_the_other_texts_of_its_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mini_lm()
    masks = "theworld.train.reader.lm_inputs.layer_masks"
    monkeypatch.setattr(masks, lambda *arguments, **_: arguments[2])
    with pytest.raises(ConfigError, match="mixes the texts of a row in Gemma2ForCausalLM"):
        check_world_inputs(model)


def test_a_model_in_16_bits_that_rounds_as_a_deep_one_does_is_taken() -> None:
    """Some logits of a packed row are then off by 0.2, of 3 to 40; a text that saw another would move all of them."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=16, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.normal_(0, 12 / 128**0.5)
    check_world_inputs(model.to(torch.bfloat16))


def test_a_model_that_takes_no_vectors_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gemma-4 does where its inputs for each layer are not made."""
    model = tried_lm("Gemma4ForCausalLM")
    check_world_inputs(model)
    monkeypatch.setattr("theworld.train.reader.lm_inputs.has_inputs_by_layer", lambda _: False)
    with pytest.raises(ConfigError, match=r"Gemma4ForCausalLM of transformers .* cannot read world tokens"):
        check_world_inputs(model)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_used_only_where_it_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = find_weights(str(save_mini_lm(tmp_path)))
    choose, gpu, said = partial(attention_of, weights, dtype=torch.bfloat16), torch.device("cuda"), list[str]()
    assert choose("auto", device=CPU) == "eager"
    assert choose("auto", device=None) == "flex_attention"  # a GPU that is planned for
    asked: list[HeadSizes] = []
    monkeypatch.setattr(lm_module, "flex_problem", lambda sizes, *_: asked.append(sizes))
    assert choose("auto", device=gpu, say=said.append) == "flex_attention"
    assert (asked[0].softcap, asked[0].head_dim, asked[0].windowed) == (50.0, 16, True)
    assert said == []
    monkeypatch.setattr(lm_module, "flex_problem", lambda *_: "a value that it computes is off by 12.0%")
    assert choose("auto", device=gpu, say=said.append) == "eager"
    assert "eager, which takes more memory, since flex attention cannot be used on cuda: a value that it" in said[0]
    with pytest.raises(ConfigError, match="off by"):
        choose("flex_attention", device=gpu)
    lm = load_language_model(weights, device=CPU, dtype=torch.float32, attention="flex_attention")
    assert lm.settings._attn_implementation == FLEX


def test_flex_attention_is_not_taken_for_an_architecture_that_it_was_not_written_for(tmp_path: Path) -> None:
    weights = find_weights(str(save_tried_lm(tmp_path, "LlamaForCausalLM")))
    choose = partial(attention_of, weights, dtype=torch.bfloat16, device=torch.device("cuda"))
    assert choose("auto") == "sdpa"
    with pytest.raises(ConfigError, match=r"flex_attention .*LlamaForCausalLM.*attention = auto"):
        choose("flex_attention")
