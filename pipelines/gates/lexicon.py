"""The closed classes of English that a question turns on, and the words that mark its kind."""


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def ordered(text: str) -> list[str]:
    return text.split()


QUESTION = words("what which who whom whose when where why how howto meaning price")
AUXILIARY = words(
    "is was be been being do did done have had can could may might must shall should will would "
    "ought dare used"
)
MODAL = words(
    "was been being did done had can could may might must shall should will would ought need "
    "allow allowed require required permit permitted able going yet still already ever"
)
PRONOUN = words(
    "i me my mine myself you your yours yourself he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves one someone somebody "
    "whom whose 's"
)
NEGATION = words(
    "not no no, not, never nor neither none nobody nothing nowhere without unless except non "
    "hardly barely scarcely lack fail refuse deny ain't"
)
QUANTIFIER = words(
    "all every each some any most many much few afew several both either only just always "
    "sometimes often usually rarely seldom everyone everybody anyone anybody someone exactly "
    "about approximately nearly almost everything anything something half enough total entire "
    "whole again twice once alittle anumber"
)
PREPOSITION = words(
    "in on at to from of for with by about against over under above below into onto out off up "
    "down inside outside within between among through during before after since until till "
    "toward towards across along around behind beside beyond near per via like unlike than as "
    "if because although though while and or but nor so then"
)
COMPARATIVE = words(
    "more less better worse best worst than most least as same different equal bigger larger "
    "smaller greater fewer longer shorter taller higher lower faster slower older younger newer "
    "cheaper heavier lighter stronger weaker hotter colder warmer cooler wider narrower deeper "
    "largest smallest longest shortest tallest highest lowest fastest slowest oldest youngest "
    "newest cheapest heaviest lightest strongest weakest hottest coldest nearest closest farthest "
    "richest poorest easiest hardest rarest"
)
TASK = words(
    "list name write explain describe summarize define translate sort classify count compare "
    "criticize analyze outline rewrite paraphrase convert calculate compute solve prove give "
    "suggest recommend generate create show tell draft draw extract find identify label rank "
    "rate reply answer respond reverse correct fix improve shorten expand evaluate review debug "
    "refactor implement simplify estimate predict quiz essay poem story haiku song joke speech "
    "letter email article report table json yaml xml csv html markdown bullet bullets sentence "
    "sentences paragraph paragraphs word words page pages short long brief detailed formal "
    "informal casual concise simple step steps pros cons"
)
OPENERS = (
    QUESTION
    | AUXILIARY
    | words("are were has does am isn aren doesn don didn can't won't please")
    | words("what's who's where's how's")
    | (TASK - words("short long brief simple word words step steps table letter email page"))
    | words(
        "help translate summarise criticise analyse capitalise capitalize uppercase lowercase "
        "proofread rephrase spell use make think pick choose check decide determine detect tag "
        "categorize categorise complete fill read"
    )
)
POLITE = words("please kindly pls hi hello hey dear")
_VERBS = words(
    "help make use check capitalize uppercase lowercase proofread rephrase spell repair add "
    "subtract multiply divide differentiate integrate factor simplify open close delete remove "
    "cancel update change set send book order turn play order choose pick think rephrase guess "
    "complete fill read finish continue select plan design build implement transfer pay block "
    "activate reset look search provide share highlight discuss elaborate clarify illustrate "
    "teach guide walk remind schedule call stop start put mention state derive verify decode "
    "encode parse format clean merge split round order group tag detect decide determine"
)
IMPERATIVE = "|".join(
    sorted(
        (TASK | _VERBS)
        - words("short long brief simple table letter email page word words pros cons step steps")
    )
)
MENTION = words(
    "translate translated translation spell spelled spelt spelling pronounce pronounced "
    "pronunciation rhyme rhymes synonym synonyms antonym antonyms plural singular conjugate "
    "anagram palindrome rephrase paraphrase proofread grammar punctuation punctuate capitalise "
    "capitalize uppercase lowercase vowel vowels syllable syllables say said word sentiment mean "
    "means meaning define definition tense noun verb adjective contraction etymology reword typo "
    "hyphen apostrophe anagrams homophone letters phrase idiom proverb slang"
)
"""Words that turn others into examples: what "big" means is not what "large" means."""
MENTIONING = words(
    "rewrite reverse sort classify label repeat echo print correct fix count spell complete "
    "continue finish edit improve shorten tag type reply respond extract alphabetize parse format"
)
"""Verbs that do so where they are the task itself: "sort pear fig" beside "how do I sort"."""

CASED = words(
    "us it who polish may march august turkey china aids apple windows amazon java mercury mars "
    "python rust go swift ruby reading nice bill mark will rose frank job lima chad jordan "
    "cat bat ram pat ace sat act ice era pet hiv oracle shell target gap visa word excel access "
    "teams outlook office slack zoom meta alphabet square stripe buck moody earnest pole "
    "scotch dutch welsh catholic labour democrat republican conservative liberal green "
    "please thanks thank cheers hello help and or not in no on is at as co if then god lent mass "
    "mini ford fiat jaguar tesla "
    "bath cork split essen nancy olive hope faith grace joy dawn jack rob sue dick drew art"
)
"""Words that are another word with a capital."""

NAMES = words(
    "america europe asia africa afghanistan albania algeria argentina armenia australia austria "
    "bangladesh belarus belgium bolivia brazil bulgaria cambodia canada chile china colombia "
    "croatia cuba cyprus denmark ecuador egypt england estonia ethiopia finland france georgia "
    "germany ghana greece hungary iceland india indonesia iran iraq ireland israel italy jamaica "
    "japan jordan kazakhstan kenya korea kuwait laos latvia lebanon libya lithuania luxembourg "
    "malaysia malta mexico moldova mongolia morocco myanmar nepal netherlands nigeria norway "
    "pakistan panama paraguay peru philippines poland portugal qatar romania russia rwanda "
    "scotland senegal serbia singapore slovakia slovenia somalia spain sudan sweden switzerland "
    "syria taiwan tanzania thailand tunisia turkey uganda ukraine uruguay usa uk eu venezuela "
    "vietnam wales yemen zambia zimbabwe london paris berlin madrid rome tokyo beijing moscow"
)
LANGUAGE = words(
    "english french german spanish italian portuguese dutch swedish danish norwegian finnish "
    "polish czech russian ukrainian turkish greek arabic hebrew hindi urdu bengali chinese "
    "mandarin cantonese japanese korean vietnamese thai latin swahili hungarian romanian"
)

ENGLISH = (
    QUESTION
    | AUXILIARY
    | PRONOUN
    | NEGATION
    | QUANTIFIER
    | PREPOSITION
    | COMPARATIVE
    | OPENERS
    | LANGUAGE
    | NAMES
    | _VERBS
    | words("the a an this that these those there here are were has does am please isn't don't")
)
DISTINCTIVE = words(
    "the what which who when where why how this these those there of is are does my your you "
    "please explain describe list write name give summarize summarise convert their they them "
    "with from should would could translate sort suggest tell if solve subtract divide define it"
)
FOREIGN = words(
    "der die das und ist nicht ein eine wie wer wo el los las que es por para una como le la les "
    "est et une des du il lo che di per sono het een en van ik hoe är och jag inte hur det att "
    "o os um uma não é qual quais jest nie czy i̇s ve bir der dem den im zu cual cuál où"
)
