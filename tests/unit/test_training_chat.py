"""Conversations become token ids of which exactly the answers are learned."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.jobs.chat import DEFAULT_TEMPLATE, ChatRenderer, ChatTemplateError, messages_problem
from deepseek_ops.jobs.conversations import IGNORED, ConversationSplit, ConversationWriter
from deepseek_ops.training.errors import TooFewSamplesError

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And three and three?"},
    {"role": "assistant", "content": "Six, of course."},
]
BAR = "\N{FULLWIDTH VERTICAL LINE}"
USER, ASSISTANT = f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (  # as templates of reasoning models: thoughts of earlier turns are left out, the prompt opens a thought
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)


@pytest.fixture
def made(tmp_path):
    """A function from a template to (renderer, tokenizer, folder)."""

    def make(template=None):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator([message["content"] for message in TALK], trainer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        if template:
            settings["chat_template"] = template
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return ChatRenderer(tmp_path, tokenizer), tokenizer, tmp_path

    return make


def learned(tokenizer, sample):
    runs, open_run = [], []
    for number, answer in [*zip(sample.ids, sample.answers, strict=True), (0, False)]:
        if answer:
            open_run.append(number)
        elif open_run:
            runs.append(tokenizer.decode(open_run, skip_special_tokens=False))
            open_run = []
    return runs


def test_without_a_template_the_turns_are_those_of_deepseek_and_the_template_stays_with_the_tokenizer(made):
    renderer, tokenizer, folder = made()
    (sample,) = renderer.render("a", TALK)
    assert renderer.is_default
    assert learned(tokenizer, sample) == ["Four.</s>", "Six, of course.</s>"]
    text = tokenizer.decode(sample.ids, skip_special_tokens=False)
    assert text == (
        f"<s>Be short.{USER}What is two and two?{ASSISTANT}Four.</s>"
        f"{USER}And three and three?{ASSISTANT}Six, of course.</s>"
    )
    assert (folder / "chat_template.jinja").read_text() == DEFAULT_TEMPLATE
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder)
    assert again.apply_chat_template(TALK, tokenize=False) == text


def test_the_end_of_a_turn_is_learned_and_the_line_break_after_it_is_not(made):
    renderer, tokenizer, folder = made(CHATML)
    (sample,) = renderer.render("a", [*TALK, {"role": "user", "content": "Thanks."}])
    assert learned(tokenizer, sample) == ["Four.<|im_end|>", "Six, of course.<|im_end|>"]
    assert not (folder / "chat_template.jinja").exists()
    assert not renderer.is_default


def test_where_a_template_rewrites_earlier_turns_each_answer_follows_its_own_history(made):
    renderer, tokenizer, _ = made(FORGETFUL)
    talk = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>hm</think>Yes"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "<think>so</think>No"},
    ]
    samples = renderer.render("a", talk)
    assert [learned(tokenizer, sample) for sample in samples] == [
        ["hm</think>Yes<|im_end|>"], ["so</think>No<|im_end|>"]]  # fmt: skip
    assert "hm" not in tokenizer.decode(samples[1].ids)


def test_a_template_that_refuses_a_conversation_is_named_with_it(made):
    renderer, _, _ = made("{{ raise_exception('only users may begin') }}")
    with pytest.raises(ChatTemplateError, match=r"conversation 7.*only users may begin"):
        renderer.render("7", TALK)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "no list"),
        ([], "no list"),
        ([{"role": "user"}], "message 0 lacks"),
        ([{"role": "user", "content": "Hello?"}], "nothing to learn"),
    ],
)
def test_what_is_no_conversation_is_told_with_its_reason(messages, problem):
    assert problem in messages_problem(messages)


def written(folder, *conversations, shard_tokens=10**6):
    writer = ConversationWriter(folder, "train", vocab_size=100, shard_tokens=shard_tokens)
    for ids, answers in conversations:
        writer.add(ids, answers)
    writer.close()
    return folder


def test_a_window_holds_whole_conversations_each_predicted_from_itself(tmp_path):
    a = ([1, 2, 3, 4], [False, False, True, True])
    b = ([5, 6, 7], [False, True, True])
    split = ConversationSplit(written(tmp_path, a, b, shard_tokens=3), "train", length=7, pad=99)
    assert len(split) == 1
    window = split.window(0)
    assert window.inputs.tolist() == [1, 2, 3, 5, 6, 99, 99]
    assert window.targets.tolist() == [IGNORED, 3, 4, 6, 7, IGNORED, IGNORED]
    assert window.positions.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert (split.answers(0), window.size) == (4, 5)


def test_long_conversations_are_cut_and_those_without_an_answer_left_are_dropped(tmp_path):
    kept = (list(range(1, 11)), [False] * 2 + [True] * 8)
    dropped = (list(range(11, 21)), [False] * 8 + [True] * 2)
    split = ConversationSplit(written(tmp_path, kept, dropped), "train", length=4, pad=0)
    assert split.window(0).targets.tolist() == [IGNORED, 3, 4, 5]
    assert split.answers(0) == 3
    facts = split.facts()
    assert (facts["conversations"], facts["truncated"], facts["dropped"]) == (1, 1, 1)


def test_a_split_without_conversations_or_with_a_cut_file_is_refused(tmp_path):
    with pytest.raises(TooFewSamplesError):
        ConversationSplit(tmp_path, "train", length=4, pad=0)
    written(tmp_path, ([1, 2, 3], [False, True, True]))
    (tmp_path / "train-00000.ids").write_bytes(b"\0")
    with pytest.raises(PermanentError, match="1 bytes and its index says 6"):
        ConversationSplit(tmp_path, "train", length=4, pad=0)
