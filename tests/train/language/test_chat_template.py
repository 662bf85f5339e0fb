"""Prompts are those that transformers writes with the model's chat template, which no question runs."""

from __future__ import annotations

import json
import resource
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from theworld.pipeline.errors import ConfigError, QuestionError
from theworld.pipeline.files.hub import chat_texts
from theworld.train.language.chat_template import chat_format
from theworld.train.language.lm import LanguageModel, load_language_model, load_tokenizer_only
from theworld.train.language.prompt_format import TokenizerOnly
from theworld.train.language.weights import Weights, find_weights

from ...miniatures.lm import mini_lm, mini_tokenizer, save_mini_lm
from ...miniatures.vision_lm import save_eyes_lm
from ...patience import ends_within

GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
UNTRIMMED = (
    "{{ bos_token }}{% for turn in messages %}{{ 'model' if turn.role == 'assistant' else turn.role }} : "
    "{{ turn.content if turn.content is string else '<start_of_image>' + (turn.content | last).text }} .\n"
    "{% endfor %}{% if add_generation_prompt %}model :{% endif %}"
)
"""No blank is left out, and an answer starts with a blank that its prompt lacks."""
ALL_EXTRAS = (
    "{% macro wrap(text) %}[{{ text }}]{% endmacro %}{% set it = namespace(self=1, seen=dict(a=2)) %}{{ bos_token }}"
    "{{ wrap('é' | tojson) }}{{ dict.fromkeys([1]) }}{{ strftime_now('%%') }}{{ it.seen.a }}{{ lipsum(n=0) }}"
    "{% for turn in messages %}{% if loop.index > 99 %}{% break %}{% endif %}"
    "{% if turn.role == 'assistant' %}{% generation %}{{ turn.content | trim }}<end_of_turn>{% endgeneration %}\n"
    "{% else %}{{ turn.role }} {{ turn.content.strip() if loop.first else turn.content }} \n model {% endif %}\n"
    "    {% continue %}\n{% endfor %}"
)
"""What transformers adds to Jinja, and answers whose turn starts in the turn of the question."""
QWEN_3 = (
    "{% set ns = namespace(last=-1) %}{% for turn in messages %}{% if turn.role == 'user' and not (turn.content"
    ".startswith('<tool>') and turn.content.endswith('</tool>')) %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for turn in messages %}{% set content = turn.content %}{{ '<|im_start|>' + turn.role + '\n' }}"
    "{% if turn.role == 'assistant' %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}{% if loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' + content.lstrip('\n') }}{% else %}"
    "{{ content }}{% endif %}{% else %}{{ content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking "
    "is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""As Qwen3's, without tools: the last answer alone follows a thought."""
GEMMA_4 = (
    "{% macro said(text) %}{% set ns = namespace(kept='') %}{% for part in text.split('<channel|>') %}"
    "{% set ns.kept = ns.kept + part.split('<|channel>')[0] %}{% endfor %}{{ ns.kept | trim }}{% endmacro %}"
    "{{ bos_token }}{% for turn in messages %}{{ '<|turn>' + ('model' if turn.role == 'assistant' else turn.role) + "
    "'\n' }}{% if turn.role == 'assistant' %}{{ said(turn.content) }}{% else %}{{ turn.content | trim }}{% endif %}"
    "{{ '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
    "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
"""As Gemma-4's, without tools: a prompt alone ends with a thought."""
SMOLLM_3 = (
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: {{ '/think' if enable_thinking is "
    "not defined or enable_thinking else '/no_think' }}<|im_end|>\n{% for turn in messages %}<|im_start|>"
    "{{ turn.role }}\n{% if turn.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' + turn.content.lstrip('\n') }}"
    "{% else %}{{ turn.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""As SmolLM3's: a system turn with the date."""
THOUGHTS = ("<|im_start|>", "<|im_end|>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")

CONTROLS = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<image_soft_token>",
    "<end_of_image>",
)
MARKERS = ("<start_of_", "end_of_turn>\n", "\n", "start_of_image", "model", "<", "bos>", "{{ bos_token }}", "{%")
TEXTS = st.lists(
    st.one_of(st.sampled_from([*MARKERS, " ", "\t", "\u00a0", "{", "}", "'"]), st.text(max_size=8)), max_size=6
).map("".join)
"""Words that control tokens are made of, too."""
PLAIN_TEXTS = TEXTS.filter(lambda text: not any(word in text for word in CONTROLS))


@cache
def gemma_tokenizer(template: str | None) -> Any:
    """Of bytes, so that no text is unknown, with Gemma's control tokens."""
    controls = ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    controls += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    letters = sorted(ByteLevel.alphabet())
    inner = Tokenizer(BPE({word: number for number, word in enumerate([*controls, *letters])}, []))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = ByteLevelDecoder()  # type: ignore[assignment]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=dict(zip(("boi_token", "eoi_token", "image_token"), controls[5:], strict=True)),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": controls[3:5]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template
    return tokenizer


def book(tokenizer: Any, *, image: bool = False) -> TokenizerOnly:
    eyes = transformers.Gemma3Config(mm_tokens_per_image=4, image_token_index=7)
    config = eyes if image else transformers.Gemma2Config()
    return TokenizerOnly(tokenizer, Weights(Path("mini"), "mini", "sha256:mini"), config)


def rendered(tokenizer: Any, turns: list[tuple[str, str | None]], *, image: bool) -> str:
    """As transformers writes it."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    if image:
        messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": messages[0]["content"]}]
    prompt = turns[-1][1] is None
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


@pytest.mark.parametrize(
    ("template", "image"),
    [(GEMMA_2, False), (GEMMA_3, False), (GEMMA_3, True), (UNTRIMMED, False), (UNTRIMMED, True), (ALL_EXTRAS, False)],
    ids=["gemma 2", "gemma 3", "gemma 3 with an image", "untrimmed", "untrimmed with an image", "all extras"],
)
@given(before=st.lists(st.tuples(PLAIN_TEXTS, PLAIN_TEXTS), max_size=3), question=PLAIN_TEXTS, answer=PLAIN_TEXTS)
@settings(max_examples=100, deadline=None)
def test_prompts_and_answers_are_the_tokens_of_transformers_own_rendering(
    template: str, image: bool, before: list[tuple[str, str]], question: str, answer: str
) -> None:
    tokenizer = gemma_tokenizer(template)
    lm = book(tokenizer, image=image)
    prompt = rendered(tokenizer, [*before, (question, None)], image=image)
    seen = f"\n\n<start_of_image>{'<image_soft_token>' * 4}<end_of_image>\n\n"
    if image:
        prompt = prompt.replace("<start_of_image>", seen, 1)
    expected = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert lm.prompt_ids(question, before) == expected
    asked, whole = (rendered(tokenizer, [("?", text)], image=image) for text in (None, answer))
    assert whole.startswith(asked)
    answered = tokenizer(whole[len(asked) :].rstrip(), add_special_tokens=False)["input_ids"]
    assert lm.answer_ids(answer) == answered


def thinking_tokenizer(template: str) -> Any:
    tokenizer = gemma_tokenizer.__wrapped__(template)
    tokenizer.add_tokens([AddedToken(word, special=True) for word in THOUGHTS])
    tokenizer.add_tokens([AddedToken(word) for word in ("<think>", "</think>", "<tool>", "</tool>")])  # as Qwen's
    return tokenizer


@pytest.mark.parametrize(
    ("template", "thought"),
    [
        (QWEN_3, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (GEMMA_4, "<|turn>model\n<|channel>thought\n<channel|>"),
        (SMOLLM_3, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
    ids=["qwen 3", "gemma 4", "smollm 3"],
)
def test_a_model_that_thinks_first_is_asked_for_its_answer_alone(template: str, thought: str) -> None:
    tokenizer = thinking_tokenizer(template)
    lm = TokenizerOnly(tokenizer, Weights(Path("mini"), "mini", "sha256:mini"), transformers.Gemma2Config())
    before = [("where is it?", "\n left "), ("and now?", "right")]
    messages = [
        {"role": role, "content": text}
        for turn in before
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": "where?"}],
        tokenize=False, add_generation_prompt=True, enable_thinking=False,
    )  # fmt: skip
    today = f"{datetime.now():%d %B %Y}"
    asked = tokenizer.decode(lm.prompt_ids("where?", before)).removeprefix("<bos>")
    assert asked == whole.removeprefix("<bos>").replace(today, "26 July 2024")  # and no run depends on its day
    assert asked.endswith(thought)
    answer = lm.answer_ids("\nleft")
    assert tokenizer.decode(answer[:-1]).strip() == "left"
    assert (
        answer[-1] == lm.end_id == tokenizer.convert_tokens_to_ids("<turn|>" if template is GEMMA_4 else "<|im_end|>")
    )
    for word in ("</think>", "<channel|>"):
        if word in template:
            with pytest.raises(QuestionError, match="control token"):
                lm.answer_ids(f"a {word} left")


@pytest.mark.parametrize("template", [GEMMA_3, None], ids=["chat", "plain"])
@given(before=TEXTS, control=st.sampled_from(CONTROLS), after=TEXTS)
@settings(max_examples=30, deadline=None)
def test_a_text_never_acts_as_a_control_token(template: str | None, before: str, control: str, after: str) -> None:
    lm = book(gemma_tokenizer.__wrapped__(template))
    text = f"{before}{control}{after}"
    for refused in (
        lambda: lm.prompt_ids(text),
        lambda: lm.prompt_ids("and now?", [(text, "left")]),
        lambda: lm.prompt_ids("and now?", [("where?", text)]),
        lambda: lm.answer_ids(text),
    ):
        with pytest.raises(QuestionError, match=r"control token, not as text. Remove it"):
            refused()


def test_an_unknown_word_is_no_control_token() -> None:
    lm = book(mini_tokenizer())
    assert lm.unknown_words("where is zebra?") == ["zebra?"]
    assert len(lm.prompt_ids("where is zebra?")) > 4
    with pytest.raises(QuestionError, match="'<eos>'"):
        lm.answer_ids("left <eos>")


def test_an_answer_ends_at_the_end_of_the_turn_or_of_the_text() -> None:
    lm = book(gemma_tokenizer(GEMMA_3))
    eos, turn = (lm.tokenizer.convert_tokens_to_ids(word) for word in ("<eos>", "<end_of_turn>"))
    left, right = (lm.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("left", "right"))
    assert (lm.end_id, lm.end_ids) == (turn, {eos, turn})
    for end in (eos, turn):
        assert lm.decode([*left, end, *right]) == "left"


def test_a_generation_config_ends_answers_at_control_tokens_alone() -> None:
    lm = LanguageModel(mini_lm(), mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))
    eos, pad, word = (lm.tokenizer.convert_tokens_to_ids(text) for text in ("<eos>", "<pad>", "left"))
    for named, ends in ((None, {eos}), (pad, {eos, pad}), ([word, pad, 10**9], {eos, pad})):
        lm.model.generation_config.eos_token_id = named
        assert lm.end_ids == ends


def test_of_templates_by_name_the_default_is_read() -> None:
    tokenizer = mini_tokenizer()
    tokenizer.chat_template = {"tool_use": "{{ nothing() }}", "default": GEMMA_2}
    alone = gemma_tokenizer(GEMMA_2)
    assert chat_format(tokenizer, "mini", None) == chat_format(alone, "mini", None)
    tokenizer.chat_template = {"tool_use": GEMMA_2}
    with pytest.raises(ConfigError, match="without one named default"):
        chat_format(tokenizer, "mini", None)


def test_no_question_runs_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = gemma_tokenizer(GEMMA_3)
    lm = book(tokenizer, image=True)
    first = lm.prompt_ids("where is the ball?")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a template was run")

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", refuse)
    monkeypatch.setattr(chat_texts.subprocess, "Popen", refuse)
    assert lm.prompt_ids("where is the ball?") == first
    assert lm.prompt_ids("and now?", [("where is the ball?", "left")])[: len(first)] == first


HOSTILE = {
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "does not end within",
    ),
    "a giant text": ("{{ 'a' * 30000000000 }}", "takes more memory"),
    "a text that doubles": (
        "{% set it = namespace(x='a') %}{% for a in range(99) %}{% set it.x = it.x ~ it.x %}{% endfor %}",
        "takes more memory",
    ),
    "a list that doubles": (
        "{% set it = namespace(x=[1]) %}{% for a in range(99) %}{% set it.x = it.x + it.x %}{% endfor %}",
        "takes more memory|does not end within",
    ),
    "a number without end": ("{{ 9 ** (9 ** (9 ** 9)) }}", "does not end within|takes more memory"),
    "a macro that calls itself": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "calls itself without end"),
    "a long range": ("{% for a in range(10 ** 12) %}{% endfor %}", "OverflowError"),
    "output without end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'abcdefgh' * 999 }}{% endfor %}{% endfor %}",
        "takes more memory|does not end within",
    ),
    "much output": ("{{ 'a' * 9999999 }}", "writes more than"),
    "much output with each turn": ("{{ 'a' * 99999 }}" + GEMMA_2, "writes more than"),
    "a loop for some questions": (
        GEMMA_2 + "{% if 'red' in messages[0].content %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}",
        "does not end within",
    ),
    "deep brackets": ("{{ " + "(" * 100000 + " }}", "calls itself without end|does not end within"),
    "no Jinja": ("{% for %}", "TemplateSyntaxError"),
    "raises": ("{{ raise_exception('\x1b[31mno') }}", r"TemplateError: '\\x1b\[31mno'"),
    "long": ("a" * (2**20 + 1), "is 10485.. characters long"),
    "hides the question": ("{{ bos_token }}", "does not write the question unchanged and exactly once"),
    "repeats the question": (
        "{{ messages[0].content }}{{ messages[0].content }}",
        "question unchanged and exactly once",
    ),
    "hides the answer": ("{{ messages[0].content }}", "does not write the answer unchanged and exactly once"),
    "a prompt that its answers lack": (
        "{% for turn in messages %}{{ turn.role }} {{ turn.content }} {% endfor %}{% if add_generation_prompt %}model"
        "{% endif %}",
        "does not put an answer behind its generation prompt",
    ),
    "small letters": (GEMMA_2.replace("| trim", "| lower"), "the question unchanged"),
    "escapes": (GEMMA_2.replace("| trim", "| e"), "does not put an answer behind"),
    "one line": (GEMMA_2.replace("| trim", "| trim | replace('\n', ' ')"), "changes their text"),
    "cut": (GEMMA_2.replace("| trim", "| truncate(99)"), "changes their text"),
    "blanks at one end": (GEMMA_2.replace("| trim", ".rstrip()"), "changes their text"),
    "numbered turns": (GEMMA_2.replace("'<end_of_turn>\n'", "'<end_of_turn>\n' ~ loop.index"), "number of turns"),
    "forgets earlier thoughts": (
        GEMMA_2.replace("message['content'] | trim", "message['content'].split('</think>')[-1] | trim"),
        "changes their text",
    ),
    "half a character": ("{{ '\ud800' }}" + GEMMA_2, "lone surrogate"),
    "files": ("{{ messages.__class__.__base__.__subclasses__() }}", "SecurityError"),
    "another file": ("{% include '/etc/hostname' %}", "TypeError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_cannot_be_used_is_refused_in_words_and_within_bounds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, why = HOSTILE[name]
    if name != "nested loops":  # which ends at the true limit
        monkeypatch.setitem(chat_texts._LIMITS, "cpu_s", 1 if "does not end" in why else 2)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    tokenizer = mini_tokenizer()
    tokenizer.chat_template = template
    refused = pytest.raises(ConfigError, match=f"the chat template of mini .*({why}).*Gemma's template, or remove")
    with ends_within(90), refused as first:
        book(tokenizer).prompt_ids("where is the ball?")
    with refused as second:  # at once: nothing is run again
        book(tokenizer).answer_ids("left")
    assert str(first.value) == str(second.value)
    assert str(first.value).isprintable()
    assert len(str(first.value)) < 600
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the first of a process that we start
    assert largest <= max(before, ours, 1.5 * 2**20)  # KiB; other tests had children, too


def test_a_template_that_leaves_images_out_is_refused() -> None:
    tokenizer = gemma_tokenizer(GEMMA_3.replace("{{ '<start_of_image>' }}", ""))
    with pytest.raises(ConfigError, match=r"leaves images out: .*'<start_of_image>'"):
        book(tokenizer, image=True).prompt_ids("where is it?")
    bare = mini_tokenizer()
    bare.chat_template = GEMMA_3
    with pytest.raises(ConfigError, match="names no boi_token"):
        book(bare, image=True).prompt_ids("where is the ball?")


@pytest.mark.parametrize("save", [save_mini_lm, save_eyes_lm])
def test_a_folder_with_a_hostile_template_is_refused_when_it_is_loaded(tmp_path: Path, save: Any) -> None:
    folder = save(tmp_path)
    (folder / "chat_template.jinja").write_text(HOSTILE["a giant text"][0])
    import torch

    refused = pytest.raises(ConfigError, match="takes more memory")
    with ends_within(60), refused:
        load_language_model(find_weights(str(folder)), device=torch.device("cpu"), dtype=torch.float32)
    with refused:
        load_tokenizer_only(find_weights(str(folder))).prompt_ids("where is the ball?")


def test_the_process_that_renders_opens_no_file_and_starts_no_process(tmp_path: Path) -> None:
    """Should a template get out of Jinja's sandbox: an environment with a way out stands for that."""
    script = Path(chat_texts.__file__).with_name("chat_renderer.py")
    way_out = "    environment.globals.update(out=__import__, raise_exception"
    changed = script.read_text().replace("    environment.globals.update(\n        raise_exception", way_out)
    assert way_out in changed
    target = tmp_path / "written"
    for attempt, error in (
        (f"out('os').open('{target}', 65)", "OSError"),
        ("out('socket').socket()", "OSError"),
        ("out('subprocess').run(['true'])", "OSError"),
    ):
        answer = run_renderer(changed, "{{ " + attempt + " }}", tmp_path)
        assert error in answer["failure"], answer
    assert not target.exists()


def run_renderer(program: str, template: str, folder: Path) -> dict[str, Any]:
    import subprocess
    import sys

    import jinja2

    (folder / "renderer.py").write_text(program)
    request = {"template": template, "tokens": {}, "conversations": [[[], True]], "limits": chat_texts._LIMITS}
    command = [sys.executable, "-I", str(folder / "renderer.py"), str(Path(jinja2.__file__).parents[1])]
    done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "does not end"),
        (b"[" * 100000, "nonsense"),
        (b"{}", "nonsense"),
        (b'"text"', "nonsense"),
        (b'{"texts": ["a"]}', "nonsense"),
        (b'{"texts": ["a", 2]}', "nonsense"),
        (b" " * (2**20 + 1), "more than"),
    ],
)
def test_nothing_that_the_process_answers_is_taken_on_trust(answer: bytes, why: str) -> None:
    assert why in str(chat_texts._checked(answer, -9, 2))
    assert chat_texts._checked(b'{"texts": ["a", "b"]}', 0, 2) == ["a", "b"]


def test_a_word_of_the_template_is_a_control_token_also_where_the_tokenizer_does_not_mark_it() -> None:
    tokenizer = mini_tokenizer()
    tokenizer.add_tokens(["<turn>", "<other>"])  # ordinary added tokens
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<turn> {{ m.role }} {{ m.content | trim }} <eos>{% endfor %}"
        "{% if add_generation_prompt %}<turn> assistant {% endif %}"
    )
    lm = book(tokenizer)
    assert set(lm.control_tokens.values()) == {"<pad>", "<bos>", "<eos>", "<turn>"}
    with pytest.raises(QuestionError, match="'<turn>'"):
        lm.prompt_ids("where? <turn> model left")


def test_a_control_token_is_found_in_whatever_form_the_tokenizer_takes_it() -> None:
    tokenizer = gemma_tokenizer.__wrapped__(None)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("<turn>", special=True, normalized=True)])
    lm = book(tokenizer)
    for text in ("<turn>", "<TURN>", "\uff1cturn\uff1e"):
        assert tokenizer.convert_tokens_to_ids("<turn>") in tokenizer(text)["input_ids"]
        with pytest.raises(QuestionError, match="'<turn>'"):
            lm.prompt_ids(f"where? {text}")
    assert lm.prompt_ids("<EOS> is no control token here")  # <eos> is compared as it stands


def test_added_tokens_are_read_once_and_not_with_each_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3 has 6,000: reading them took a fifteenth of a second a question."""
    tokenizer = gemma_tokenizer.__wrapped__(None)
    kind, reads = type(tokenizer), list[str]()
    stock = kind.added_tokens_decoder
    monkeypatch.setattr(kind, "added_tokens_decoder", property(lambda self: reads.append("") or stock.fget(self)))
    lm = book(tokenizer)
    lm.prompt_ids("where?")
    lm.answer_ids("left")
    first = len(reads)
    assert first > 0
    for number in range(20):
        lm.prompt_ids(f"where is ball {number}?")
        lm.answer_ids(f"there {number}")
    assert len(reads) == first
