"""Ways of asking that ask the same: openings, courtesies and question forms made one.

Every rule is a pattern over the normal form of a question: lower case, words apart by one space,
contractions written out, plurals and third persons folded, articles still there. Rules apply in
the order of the table.
"""

import re

from pipelines.gates.lexicon import IMPERATIVE

_WH = r"(?:what|which|who|whom|whose|when|where|why|how)"
_AUX = r"(?:is|was|do|did|can|could|may|must|should|will|would|have|had)"
_I = r"(?:i|you|we|they|he|she|it|one)"
_START = (
    rf"(?=(?:,|there|{_WH}|{_AUX}|if|whether|please|kindly|i|we|my|tell|in|for|the|any|quick|"
    rf"{IMPERATIVE})\b|,)"
)

# "Can you write code?", "Can you cancel a booking?" and "Will you repay my fee?" ask what is
# possible. A request is what says please, only wants to be told, or has an object at hand.
_CAN_YOU = r"(?:can|could|would|will) (?:you|u|someone|anyone)"
_TELLING = (
    r"tell|explain|describe|summarize|define|list|name|outline|clarify|elaborate|discuss|"
    r"translate|rephrase|paraphrase|proofread|rewrite"
)

LEADING = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:hi|hello|hey|dear assistant|good (?:morning|afternoon|evening))(?: there)? {_START}",
        r"(?:there )?, (?=.)",
        rf"(?:please|kindly|pls) (?!please){_START}",
        rf"(?:so|well|okay|also|quick question|one question|question) , {_START}",
        rf"{_CAN_YOU} (?:please|kindly) (?=(?:{IMPERATIVE}) )",
        rf"{_CAN_YOU} (?=(?:{_TELLING}) )",
        rf"could (?:you|u)(?: possibly)? (?=(?:{IMPERATIVE}) )",
        rf"can (?:you|u) (?=(?:{IMPERATIVE}) (?:me|us|my|our|this|these|the following|[\"`]))",
        r"can (?:you|u) (?=(?:write|draft|compose|generate|suggest) (?:an?|some|\d+) )",
        rf"i (?:would like|want|need) you to (?=(?:{IMPERATIVE}) )",
    )
)
"""Courtesies in front: taken away until none is left."""

EMBEDDING = re.compile(
    r"(?:(?:please )?(?:tell me|let me know(?! when)|explain to me)(?: please)?"
    r"|(?:i|we) (?:would like|want|need|wish|would love|is trying) to (?:know|understand|find out)"
    r"|i (?:is|was) (?:just )?wondering|i wonder|do you(?: happen to)? know"
    r"|do (?:anyone|someone) know|(?:do you have )?any idea|(?:can|could|may) i (?:ask|know)"
    rf"|explain(?= why)|can you say) (?:, )?(?=(?:{_WH}|if|whether)\b)"
)
DEFINITE = re.compile(r"(?:please )?tell me (?=(?:the|my|your) )")
TRAILING = re.compile(
    r"(?: ,)*(?:(?<!please) please| pls| thank you(?: so much| very much)?|"
    r" thanks(?: a lot| so much| in advance)?| thx| cheers)$|(?: ,)+$"
)
FOR_ME = re.compile(rf"^((?:{IMPERATIVE})\b.+) for me$")

_INVERSIONS = (
    (rf"^(?:if|whether) ({_I}|there|\w+) ({_AUX}) ", r"\2 \1 "),
    (rf"^(?:if|whether) (?={_I} )", "do "),
    (r"^(what|who|where|when|how \w+|which \w+) (?!is |was )(.+) (is|was)$", r"\1 \3 \2"),
    (rf"^({_WH}(?: (?:much|many|long|old|far|often|\w+))?) ({_I}) ({_AUX}) ", r"\1 \3 \2 "),
    (
        r"^(why|how|where|when) ((?:the |my |your )?(?!to |do |did |can )\w+) "
        r"(is|was|can|will|should) ",
        r"\1 \3 \2 ",
    ),
    (
        r"^(where|when) ((?:the |my )?\w+(?: \w+)?) (was) (\w+)$",
        r"\1 \3 \2 \4",
    ),
)
"""The order of words in "tell me what the time is"; only where such an opening was taken away."""

_RULES = (
    (
        " not ",
        rf"^((?:why |what |how |where |when )?)({_AUX}) not ((?:my |your |his |her |our |their |"
        r"this |that |the )?\w+) (?=\w)",
        r"\1\2 \3 not ",
    ),
    ("it that", r"^who (?:is|was) it that ", "who "),
    ("go about", r"^(how (?:do|can|could) (?:i|one)) go about ", r"\1 "),
    ("how ", r"^how (?:do|can|could) (?:i|one) ", "howto "),
    # Of no thing in particular: "how do you feel" is not "how do I feel".
    ("how ", r"^how (?:(?:do|can|could) you|would i) (?!.*\byour?\b)(?=.*\ban? )", "howto "),
    (
        "how to ",
        r"^(?:explain |show me |tell me |teach me |describe |show |demonstrate )?how to (.*)$",
        lambda m: "howto " + re.sub(r"\byour ", "my ", m[1]),
    ),
    (
        "what is",
        r"^what is (?:the |a )?(?:way|method|procedure|process|step) (?:for me )?to ",
        "howto ",
    ),
    ("what step", r"^what step (?:do|should|must|can) i (?:need to )?take to ", "howto "),
    ("do to ", r"^what (?:do i (?:need|have) to|can i) do to ", "howto "),
    # Whose thing it is plays no part, but "open my account" does not want a new one.
    (
        "howto ",
        r"^howto (?!(?:open|obtain|find|make|create|choose|buy|select|build|write|start|add|pick|"
        r"design|plan)\b)(.*)$",
        lambda m: "howto " + re.sub(r"\b(?:my|our) ", "", m[1]),
    ),
    (" mean", r"^what do (.+) mean$", r"meaning \1"),
    ("what is", r"^what is (?:the )?(?:meaning|definition) of ", "meaning "),
    ("define", r"^define ", "meaning "),
    ("following", r"\b(?:the )?following (?=\w)", "these "),
    ("pronounced", r"^how is (\"[^ ]+) pronounced$", r"howto pronounce \1"),
    ('"', r"\b(?:the )?(?:word|phrase|term|expression|command) (?=[\"`])", ""),
    ("who ", r"^who (?:is|was) (?:the )?(?:author|writer) of ", "who wrote "),
    (" by", r"^who was (.+) (\w+ed) by$", r"who \2 \1"),
    (" by", r"^who was (.+) written by$", r"who wrote \1"),
    ("by whom", r"^by whom was (.+) written$", r"who wrote \1"),
    ("cause of", r"^what is (?:the )?cause of ", "what cause "),
    ("is what", r"^(.+) is what$", r"what is \1"),
    ("'s ", r"^(what|who|where) is ((?:the )?\w+) 's (\w+(?: \w+)?)$", r"\1 is the \3 of \2"),
    ("able to", r"^(?:is i|is you) able to ", "can i "),
    ("possible", r"^is it possible for me to ", "can i "),
    (" cost", r"^(?:how much|what) do (.+) cost\b", r"price \1"),
    ("what is", r"^what is (?:the )?(?:price|cost) of ", "price "),
    ("there ", r"^(how many .+) is there ", r"\1 is "),
    ("far away", r"^how far away ", "how far "),
    ("some ", r"^(what is|list|name|give me|give) some ", r"\1 "),
    (" me ", r"^(write|give|make|find|draw|show|suggest|recommend|send|draft) me ", r"\1 "),
    ("the difference", r"^(how is|what is) the difference ", r"\1 difference "),
    (" o", r"\b((?:turn|switch) )((?:the |my )?\w+) (on|off)$", r"\1\3 \2"),
    ("have got", r"\bhave got ", "have "),
    ("nym", r"\b(synonym|antonym) for ", r"\1 of "),
    (
        "what ",
        r"^what (?!is |was |do |did |can |could |may |must |should |will |would |have |had |"
        r"happen|cause|\w+ed |if |about |to |i |you |we |they |he |she |it |the |a |"
        r"make |kill)(?=\w)",
        "which ",
    ),
    # "Which do birds eat" asks for their food, "which birds eat" for birds.
    (
        " do ",
        rf"^(?!(?:which|whose|how many|how much) do )({_WH}(?: (?!{_AUX}\b)\w+){{0,2}}) do "
        r"(?!not\b)(?=\w)",
        r"\1 ",
    ),
    # One is asked for: "a poem" is not "poems", though a plural says nothing elsewhere.
    (
        " a",
        r"^(write|draft|name|list|suggest|recommend|give|show|generate|create|make|find|draw|tell|"
        r"compose|design) (?:me )?an? ",
        r"\1 1 ",
    ),
    ("what is a", r"^what is an? (?=.+ (?:of|for|to)\b)", "what is 1 "),
    ("exactly", r"\b(who|which|what) exactly\b", r"\1"),
)
INVERSIONS = tuple((re.compile(pattern), new) for pattern, new in _INVERSIONS)
RULES = tuple((word, re.compile(pattern), new) for word, pattern, new in _RULES)

_FRONTED = re.compile(
    r"^((?:in|for|with|on|at|during|using|if|when|as|after|before|without|under) [^,]+) , ([^,]+)$"
)
_BETWEEN = re.compile(
    r"^((?!calculate |compute |find |subtract ).*\bdifference between )([^\d,]+?) and ([^\d,]+?)$"
)


def ask(sentence: str, leading_only: bool = False) -> str:
    """The plainest way to say a question. Commas are tokens; they mark what was moved."""
    if leading_only:
        return _without_leading(sentence)
    sentence = _without_leading(_without_trailing(sentence))
    plain = EMBEDDING.sub("", sentence, count=1) if EMBEDDING.match(sentence) else sentence
    if plain != sentence:
        sentence = _first_of(INVERSIONS, plain)
    elif DEFINITE.match(sentence):
        sentence = DEFINITE.sub("what is ", sentence, count=1)
    sentence = _FRONTED.sub(r"\2 \1", FOR_ME.sub(r"\1", sentence))
    return " , ".join(_plain(clause) for clause in sentence.split(" , "))


def _plain(clause: str) -> str:
    for word, pattern, new in RULES:
        # A plain search spares most rules their pattern.
        if word in clause:
            clause = pattern.sub(new, clause)
    return _BETWEEN.sub(_in_order, clause) if "difference" in clause else clause


def _without_trailing(sentence: str) -> str:
    before = None
    while before != sentence:
        before, sentence = sentence, TRAILING.sub("", sentence, count=1) or sentence
    return sentence


def _without_leading(sentence: str) -> str:
    before = None
    while before != sentence:
        before = sentence
        for pattern in LEADING:
            match = pattern.match(sentence)
            if match and match.end() < len(sentence):
                sentence = sentence[match.end() :]
    return sentence


def _first_of(rules: tuple[tuple[re.Pattern[str], str], ...], sentence: str) -> str:
    for pattern, new in rules:
        turned = pattern.sub(new, sentence, count=1)
        if turned != sentence:
            return turned
    return sentence


def _in_order(match: re.Match[str]) -> str:
    first, second = sorted((match[2].removeprefix("a "), match[3].removeprefix("a ")))
    return f"{match[1]}{first} and {second}"
