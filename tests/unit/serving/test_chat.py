from __future__ import annotations

import sys

import pytest
from tokenizers import AddedToken, Tokenizer

from questlm.errors import ConfigError
from questlm.serving.chat import ChatTemplate

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}
{%- else %}{{ message['content'] }}{% endif %}
{{- '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MESSAGES = [{"role": "user", "content": "<b> & 'x'"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    return tokenizer


@pytest.mark.slow
def test_messages_become_the_text_that_transformers_makes(tokenizer: Tokenizer) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for continues in (True, False):
        text = ChatTemplate(CHATML, tokenizer).render(MESSAGES, continues)
        expected, _ = render_jinja_template([MESSAGES], chat_template=CHATML, add_generation_prompt=continues)
        assert [text] == expected
    assert text.startswith("<|im_start|>user\n<b> & 'x'<|im_end|>\n")


def test_the_end_of_a_turn_is_the_special_token_behind_it(tokenizer: Tokenizer) -> None:
    assert ChatTemplate(CHATML, tokenizer).ends == {tokenizer.token_to_id("<|im_end|>")}
    assert ChatTemplate("{{ messages[0].content }}", tokenizer).ends == frozenset()
    assert ChatTemplate("{{ raise_exception('no') }}", tokenizer).ends == frozenset()


@pytest.mark.parametrize(
    "source",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages[7].role.x }}", "{{ ''.__class__.__mro__ }}",
     "{{ range(10**9) | list }}", "{{ 1 / 0 }}"],
)  # fmt: skip
def test_what_a_template_refuses_or_may_not_do_is_a_sentence(tokenizer: Tokenizer, source: str) -> None:
    with pytest.raises(ConfigError, match=r"the model's chat template cannot render these messages: ."):
        ChatTemplate(source, tokenizer).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
     "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"],
    ids=["loops", "macros"],
)  # fmt: skip
def test_a_template_that_takes_too_long_is_ended(tokenizer: Tokenizer, monkeypatch, source: str) -> None:
    monkeypatch.setattr("questlm.serving.chat._SECONDS", 0.05)
    tracing = sys.gettrace()
    with pytest.raises(ConfigError, match=r"takes more than 0\.05 s"):
        ChatTemplate(source, tokenizer).render(MESSAGES)
    assert sys.gettrace() is tracing


def test_a_template_that_is_none_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*endfor"):
        ChatTemplate("{% for x in messages %}", tokenizer)
