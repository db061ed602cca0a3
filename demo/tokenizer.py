"""The demo models' tokenizer: a small byte-level BPE trained on generator text.

Byte level, so any text can be encoded; one digit per token, so numbers keep their place values.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.system_prompts import SYSTEM_PROMPTS
from demo.tasks import FAMILIES

VOCABULARY = 1024
CONTEXT = 2048
PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = [PAD, "<|system|>", "<|user|>", "<|assistant|>", END]
WORD_DIGIT_OR_REST = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"

# "<|" inside a message is broken up, so that message text can never spell a role or an end.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' ~ message['role']) }}"
    "{% endif %}"
    "{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] | replace('<|', '< |') ~ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int = 0, per_family: int = 2000) -> PreTrainedTokenizerFast:
    """Learn the merges from prompts, labels and system prompts of the generator."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_DIGIT_OR_REST), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, per_family), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=SPECIAL_TOKENS[1:-1],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _texts(seed: int, per_family: int) -> Iterator[str]:
    rng = Random(seed)
    for family in FAMILIES:
        for _ in range(per_family):
            example = family.make_from(rng, held_out=False)
            yield example.prompt
            yield example.label
    for text in SYSTEM_PROMPTS:
        yield from [text] * 100
