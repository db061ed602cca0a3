"""Words that may stand for each other in any question, and words that only look like a plural.

Only pairs that nobody would draw a line between are here. Near misses are not: change and
update, delete and remove, quick and fast, dinner and supper differ in some system or dialect.
"""

from pipelines.gates.lexicon import words

_SAME = """
buy = purchase
repair = fix
larger = bigger
largest = biggest
car = automobile
movie = film
child = kid
photo = photograph
bicycle = bike
airplane = aeroplane
refrigerator = fridge
television = tv
telephone = phone
website = web_site
email = e-mail e_mail
okay = ok alright
sick = ill
begin = start commence
beginning = start
approximately = approx roughly
everyone = everybody
anyone = anybody
someone = somebody
nobody = no_one no-one
obtain = get
assist = help
usually = normally
while = whilst
among = amongst
until = till
math = maths mathematics
laboratory = lab
vs = versus
customer service = customer_support
united-states = usa us^ u.s. u.s.a. united_states united_states_of_america
united-kingdom = uk u.k. united_kingdom
european-union = eu european_union
new-york = new_york_city nyc new_york
world-war-2 = world_war_ii world_war_2 world_war_two ww2 wwii 2th_world_war
world-war-1 = world_war_i world_war_1 world_war_one ww1 wwi 1th_world_war
artificial-intelligence = ai artificial_intelligence
chief-executive = ceo chief_executive_officer
capital = capital_city
pros-cons = pros_and_cons advantages_and_disadvantages advantage_and_disadvantage pro_and_con
afew = a_few
alittle = a_little
anumber of = a_number_of
most = most_of_the
all = all_of_the all_of
both = both_of_the both_of
which of = which_one_of
to = in_order_to so_as_to
because = due_to_the_fact_that
log in to = log_into login_to
sign in to = sign_into
log in = login log-in
check in = check-in checkin
sign up = sign-up signup
set up = setup set-up
to do = to-do
percent = per_cent
hypoglycemia = hypoglycaemia
hyperglycemia = hyperglycaemia
anemia = anaemia
leukemia = leukaemia
diarrhea = diarrhoea
estrogen = oestrogen
pediatric = paediatric
anesthesia = anaesthesia
edema = oedema
color = colour
favor = favour
favorite = favourite
flavor = flavour
honor = honour
labor = labour
neighbor = neighbour
neighborhood = neighbourhood
behavior = behaviour
humor = humour
rumor = rumour
harbor = harbour
tumor = tumour
vapor = vapour
armor = armour
center = centre
theater = theatre
fiber = fibre
liter = litre
meter = metre
kilometer = kilometre
centimeter = centimetre
millimeter = millimetre
gray = grey
tire = tyre
plow = plough
catalog = catalogue
dialog = dialogue
analog = analogue
program = programme
defense = defence
offense = offence
license = licence
practice = practise
jewelry = jewellery
aluminum = aluminium
sulfur = sulphur
canceled = cancelled
canceling = cancelling
traveler = traveller
traveling = travelling
modeling = modelling
labeled = labelled
learned = learnt
burned = burnt
dreamed = dreamt
fulfill = fulfil
enroll = enrol
pajamas = pyjamas
mustache = moustache
donut = doughnut
mom = mum
cozy = cosy
skeptical = sceptical
artifact = artefact
maneuver = manoeuvre
encyclopedia = encyclopaedia
archeology = archaeology
yogurt = yoghurt
ketchup = catsup
analyze = analyse
catalyze = catalyse
paralyze = paralyse
cafe = café
celsius = degree_celsius degrees_celsius
fahrenheit = degree_fahrenheit degrees_fahrenheit
km/h = kilometer_per_hour
m/s = meter_per_second
free = for_free
mph = mile_per_hour
naive = naïve
facade = façade
cliche = cliché
"""

_IZE = words(
    "summar organ recogn real optim minim maxim normal general special character categor "
    "critic apolog author visual util prior memor standard capital custom final initial "
    "serial token local modern symbol emphas hypothes synthes"
)


def _ize_spellings() -> dict[str, str]:
    return {
        f"{stem}is{end}": f"{stem}iz{end}"
        for stem in _IZE
        for end in ("e", "es", "ed", "ing", "ation", "er")
    }


def _table() -> dict[str, str]:
    table = _ize_spellings()
    for line in _SAME.strip().splitlines():
        chosen, _, others = line.partition(" = ")
        for other in others.split():
            table[other.replace("_", " ")] = chosen
    return table


SAME: dict[str, str] = _table()
"""Word or phrase of up to four words -> the one that stands for it."""
PHRASE_STARTS: dict[str, int] = {}
for _phrase in SAME:
    _first, _length = _phrase.split(" ")[0], _phrase.count(" ") + 1
    PHRASE_STARTS[_first] = max(PHRASE_STARTS.get(_first, 0), _length)

IRREGULAR = {
    "children": "child", "kids": "child", "men": "man", "women": "woman", "feet": "foot",
    "teeth": "tooth", "mice": "mouse", "geese": "goose", "oxen": "ox", "knives": "knife",
    "wives": "wife", "wolves": "wolf", "shelves": "shelf", "halves": "half", "loaves": "loaf",
    "bacteria": "bacterium", "criteria": "criterion", "phenomena": "phenomenon",
    "analyses": "analysis", "crises": "crisis", "diagnoses": "diagnosis", "theses": "thesis",
    "hypotheses": "hypothesis", "matrices": "matrix", "indices": "index", "fungi": "fungus",
    "are": "is", "am": "is", "were": "was", "has": "have", "does": "do", "goes": "go",
    "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero", "echoes": "echo",
    "photos": "photo", "shoes": "shoe", "movies": "movie", "cookies": "cookie", "ties": "tie",
    "pies": "pie", "lies": "lie", "dies": "die", "caches": "cache", "axes": "axes",
    "causes": "cause", "buses": "bus", "gases": "gas", "viruses": "virus", "lenses": "lens",
    "bonuses": "bonus", "atlases": "atlas", "quizzes": "quiz",
}  # fmt: skip

NOT_PLURAL = words(
    "glasses goods customs arms forces damages works news physics spectacles contents airs "
    "means savings manners letters premises trousers securities interests minutes ashes "
    "brains colours colors grounds looks pains regards scales spirits stairs stocks bonds "
    "terms thanks times troubles wages waters woods blues reds greens whites remains series "
    "species always perhaps across less this his hers its ours yours theirs us was has does "
    "is as plus minus lens gas bus yes versus alas atlas canvas christmas texas paris wales "
    "athens james thomas charles jones williams davis adams hughes netherlands philippines "
    "olympics mars venus jesus windows kubernetes pandas postgres redis jenkins aids diabetes "
    "rabies measles mumps herpes mathematics maths economics politics ethics statistics "
    "athletics gymnastics genetics mechanics dynamics electronics analytics logistics "
    "graphics acoustics sports sales headquarters barracks crossroads whereas besides "
    "sometimes afterwards towards upwards downwards indoors outdoors overseas upstairs "
    "downstairs clothes jeans shorts pants scissors pros cons hours days weeks months years "
    "lots twins states nations eagles lakers bulls bears saints giants rockies andes alps "
    "keys orleans angeles vegas dallas honduras cyprus belarus laos mauritius barbados "
    "bahamas maldives seychelles marcus lucas nicholas hercules socrates odds guts bowels "
    "mines facilities utilities amenities authorities data"
)
_ES = ("sses", "shes", "ches", "xes", "zzes")


def singular(word: str) -> str:
    """A noun without its plural, a verb without its third person; others as they are."""
    known = IRREGULAR.get(word)
    if known:
        return known
    if len(word) < 4 or word[-1] != "s" or word in NOT_PLURAL:
        return word
    if word.endswith(("ss", "us", "is", "ous")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(_ES) else word[:-1]
