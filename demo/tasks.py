"""Seeded generator of templated questions whose answers are known exactly.

Every family draws one *content* (words, numbers or a sentence) and its label, and can ask for
that same label through any of its instruction templates: that is what makes paraphrases.
A prompt is held out by a hash of its text alone, so "never trained on" needs no stored list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

ANIMALS, FRUITS, TOOLS, OBJECTS, PEOPLE = (
    text.split()
    for text in (
        """ant bat bear bee bird bull calf cat colt cow crab crow deer dog duck eel fish fox frog
        goat hare hawk hen horse lamb lion mole mouse mule owl pig rat seal sheep swan wolf""",
        """apple banana berry cherry date fig grape guava kiwi lemon lime mango melon olive orange
        papaya peach pear plum quince""",
        """anvil axe brush chisel clamp drill file hammer hoe knife ladder nail pliers rake rope
        ruler saw shovel spade wrench""",
        """bank blue bread cloud coat desk door fire gold green hill house ice lake lamp leaf milk
        moon paper rain red river road salt sand ship shoe snow song star stone sun table tree wall
        wind""",
        """adam alex anna ben carl clara david emma eva frank grace helen jack jane john julia karen
        laura lee lisa maria mark nina oscar paul peter robin sam sara tom""",
    )
)
CATEGORIES = {"animal": ANIMALS, "fruit": FRUITS, "tool": TOOLS}
WORDS = sorted(ANIMALS + FRUITS + TOOLS + OBJECTS)
DOMAINS = ("mail.org", "post.net", "work.com", "home.org", "shop.com", "school.edu")
LETTERS = (
    "Please write to {} about the {}.",
    "The {1} is ready, ask {0} for it.",
    "Send the {1} to {0} today.",
    "My new address is {}, not the one on the {}.",
    "You can reach us at {} before the {} is sold.",
)

HOLD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Example:
    """One question with its exact answer."""

    family: str
    difficulty: str
    prompt: str
    label: str


@dataclass(frozen=True)
class Family:
    """A kind of question; `draw` returns the content put into a template, and the label."""

    name: str
    difficulty: str
    draw: Callable[[Random], tuple[str, str]]
    templates: tuple[str, ...]

    def variants(self, rng: Random) -> list[Example]:
        """The same content asked through every template, in template order."""
        content, label = self.draw(rng)
        prompts = [template.format(content) for template in self.templates]
        return [Example(self.name, self.difficulty, prompt, label) for prompt in prompts]

    def make(self, rng: Random) -> Example:
        """One question, from either side of the held-out split."""
        content, label = self.draw(rng)
        prompt = rng.choice(self.templates).format(content)
        return Example(self.name, self.difficulty, prompt, label)

    def make_from(self, rng: Random, held_out: bool) -> Example:
        """One question from the asked side of the split."""
        while True:
            example = self.make(rng)
            if is_held_out(example.prompt) == held_out:
                return example


def is_held_out(prompt: str) -> bool:
    """True for the one prompt in twenty that training never sees."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HOLD_OUT_ONE_IN == 0


def _words(rng: Random, low: int, high: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(low, high))


def _numbers(rng: Random, count: int) -> list[int]:
    return rng.sample(range(10, 100), count)


def _join(items: list[str] | list[int]) -> str:
    return " ".join(map(str, items))


def _upper(rng: Random) -> tuple[str, str]:
    text = _join(_words(rng, 2, 4))
    return text, text.upper()


def _email(rng: Random) -> tuple[str, str]:
    middle = rng.choice(("", "." + rng.choice(WORDS), str(rng.randint(10, 99))))
    address = f"{rng.choice(PEOPLE)}{middle}@{rng.choice(DOMAINS)}"
    return rng.choice(LETTERS).format(address, rng.choice(OBJECTS + TOOLS)), address


def _count(rng: Random) -> tuple[str, str]:
    words = _words(rng, 2, 9)
    return _join(words), str(len(words))


def _largest(rng: Random) -> tuple[str, str]:
    numbers = _numbers(rng, 3)
    return _join(numbers), str(max(numbers))


def _first(rng: Random) -> tuple[str, str]:
    words = _words(rng, 3, 6)
    return _join(words), words[0]


def _last(rng: Random) -> tuple[str, str]:
    words = _words(rng, 3, 6)
    return _join(words), words[-1]


def _category(rng: Random) -> tuple[str, str]:
    category = rng.choice(list(CATEGORIES))
    return _join(rng.sample(CATEGORIES[category], 2)), category


def _add(rng: Random) -> tuple[str, str]:
    left, right = rng.randint(10, 99), rng.randint(10, 99)
    return f"{left} + {right}", str(left + right)


def _sort_numbers(rng: Random) -> tuple[str, str]:
    numbers = _numbers(rng, 4)
    return _join(numbers), _join(sorted(numbers))


def _second_largest(rng: Random) -> tuple[str, str]:
    numbers = _numbers(rng, 4)
    return _join(numbers), str(sorted(numbers)[-2])


def _sort_words(rng: Random) -> tuple[str, str]:
    words = _words(rng, 4, 4)
    return _join(words), _join(sorted(words))


def _reverse(rng: Random) -> tuple[str, str]:
    words = _words(rng, 4, 6)
    return _join(words), _join(words[::-1])


def _reverse_upper(rng: Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    return _join(words), _join(words[::-1]).upper()


def _animals(rng: Random) -> tuple[str, str]:
    animals = rng.sample(ANIMALS, rng.randint(1, 3))
    others = rng.sample(FRUITS + TOOLS + OBJECTS, rng.randint(2, 3))
    words = animals + others
    rng.shuffle(words)
    return _join(words), _join([word for word in words if word in ANIMALS])


FAMILIES = (
    Family("upper", "easy", _upper, (
        "Write in capital letters: {}",
        "Change this text to upper case: {}",
        "Turn every letter into a capital: {}",
        "Make it all capitals: {}",
        "Say this in upper case letters: {}",
        "Capital letters only, please: {}",
    )),
    Family("email", "easy", _email, (
        "Find the e-mail address: {}",
        "Which e-mail address is in this text? {}",
        "Copy only the e-mail address from this note: {}",
        "Give the e-mail found here: {}",
        "Take the e-mail address out of the text: {}",
        "What is the e-mail in this message? {}",
    )),
    Family("count", "easy", _count, (
        "How many words are here? {}",
        "Count the words: {}",
        "Give the number of words in this text: {}",
        "How many words does the list have? {}",
        "Number of words in: {}",
        "Tell me how many words you see: {}",
    )),
    Family("largest", "easy", _largest, (
        "Which number is the largest? {}",
        "Give the largest number: {}",
        "Find the maximum of {}",
        "What is the greatest of these numbers? {}",
        "Choose the biggest number: {}",
        "Tell me the highest number: {}",
    )),
    Family("first", "easy", _first, (
        "What is the first word? {}",
        "Give only the first word: {}",
        "Which word comes first in this list? {}",
        "Copy the word at the start: {}",
        "Tell me the first word of: {}",
        "Name the word at the beginning: {}",
    )),
    Family("last", "easy", _last, (
        "What is the last word? {}",
        "Give only the last word: {}",
        "Which word comes last in this list? {}",
        "Copy the word at the end: {}",
        "Tell me the last word of: {}",
        "Name the final word: {}",
    )),
    Family("category", "easy", _category, (
        "Animal, fruit or tool? {}",
        "Are these an animal, a fruit or a tool? {}",
        "Name the category (animal, fruit, tool): {}",
        "What kind of thing is this: animal, fruit or tool? {}",
        "Choose one of animal, fruit, tool for: {}",
        "Say if this is an animal, a fruit or a tool: {}",
    )),
    Family("add", "hard", _add, (
        "What is {}?",
        "Add: {}",
        "Find the sum {}",
        "Work out {}",
        "How much is {}?",
        "Tell me the result of {}",
    )),
    Family("sort_numbers", "hard", _sort_numbers, (
        "Sort the numbers from small to large: {}",
        "Put these numbers in rising order: {}",
        "Order the numbers, smallest first: {}",
        "Write the numbers from lowest to highest: {}",
        "Sort the numbers up: {}",
        "List these numbers, the smallest first: {}",
    )),
    Family("second_largest", "hard", _second_largest, (
        "Which number is the second largest? {}",
        "Give the second largest number: {}",
        "What is the second greatest of these numbers? {}",
        "Choose the second biggest number: {}",
        "Tell me the second highest number: {}",
        "Which number comes just below the largest? {}",
    )),
    Family("sort_words", "hard", _sort_words, (
        "Sort the words from a to z: {}",
        "Put these words in alphabetical order: {}",
        "Order the words by the alphabet: {}",
        "Write the words as a dictionary lists them: {}",
        "Sort the list of words by letter: {}",
        "Give these words in alphabetical order: {}",
    )),
    Family("reverse", "hard", _reverse, (
        "Reverse the order of the words: {}",
        "Write the words from last to first: {}",
        "Say the list of words backwards: {}",
        "Turn the list of words around: {}",
        "Give the words in reverse order: {}",
        "Repeat the words, the last one first: {}",
    )),
    Family("reverse_upper", "hard", _reverse_upper, (
        "Reverse the order of the words and write them in capital letters: {}",
        "Write the words from last to first, in upper case: {}",
        "Say the list of words backwards in capitals: {}",
        "Turn the list of words around, then make it all capitals: {}",
        "Give the words in reverse order, in upper case letters: {}",
        "Reverse the words, then change them to upper case: {}",
    )),
    Family("animals", "hard", _animals, (
        "Keep only the animals: {}",
        "Which of these words are animals? {}",
        "List the animals in this text: {}",
        "Copy the animals and nothing else: {}",
        "Remove every word that is not an animal: {}",
        "Give only the animals found here: {}",
    )),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
