"""Words that come in opposite pairs. Which of them a question holds is never free."""

_PAIRS = """
increase decrease|raise lower|rise fall|grow shrink|before after|earlier later|early late
safe dangerous|safe unsafe|harmless harmful|buy sell|purchase sale|left right|enable disable
activate deactivate|on off|minimum maximum|min max|first last|can cannot|open close|open shut
start stop|begin end|start end|start finish|import export|upload download|encrypt decrypt
encode decode|compress decompress|zip unzip|mute unmute|lock unlock|follow unfollow
subscribe unsubscribe|install uninstall|connect disconnect|attach detach|pack unpack|load unload
advantage disadvantage|benefit drawback|benefit risk|pro con|pros cons|strength weakness
entrance exit|enter leave|arrive depart|arrival departure|input output|send receive|push pull
give take|lend borrow|teach learn|win lose|profit loss|income expense|debit credit|asset liability
deposit withdraw|save spend|earn spend|import export|accept reject|accept decline|approve deny
allow forbid|allow ban|permit prohibit|include exclude|add remove|add subtract|multiply divide
insert delete|create delete|create destroy|build demolish|show hide|visible invisible|public private
internal external|inside outside|inner outer|indoor outdoor|above below|over under|up down
upper lower|top bottom|front back|front rear|high low|tall short|long short|big small|large small
wide narrow|thick thin|deep shallow|heavy light|fast slow|quick slow|hot cold|warm cool|wet dry
hard soft|hard easy|difficult easy|rough smooth|strong weak|rich poor|cheap expensive|old new
old young|ancient modern|good bad|best worst|better worse|right wrong|correct incorrect|true false
valid invalid|legal illegal|lawful unlawful|possible impossible|likely unlikely|able unable
complete incomplete|formal informal|direct indirect|dependent independent|mature immature
regular irregular|rational irrational|polite impolite|polite rude|happy unhappy|happy sad
healthy unhealthy|healthy sick|fair unfair|known unknown|common rare|common uncommon|usual unusual
necessary unnecessary|reasonable unreasonable|stable unstable|paid unpaid|married unmarried
married single|employed unemployed|enforceable unenforceable|reversible irreversible
toxic nontoxic|fiction nonfiction|positive negative|plus minus|male female|man woman|boy girl
husband wife|mother father|son daughter|brother sister|king queen|uncle aunt|niece nephew
employer employee|landlord tenant|buyer seller|teacher student|doctor patient|plaintiff defendant
parent child|predator prey|host guest|lender borrower|client server|guilty innocent|alive dead
live die|birth death|born died|love hate|like dislike|agree disagree|trust distrust|obey disobey
appear disappear|attack defend|remember forget|succeed fail|success failure|pass fail|full empty
day night|morning evening|sunrise sunset|summer winter|spring autumn|north south|east west
northern southern|eastern western|horizontal vertical|row column|ascending descending
clockwise counterclockwise|odd even|prime composite|singular plural|active passive|past future
present absent|presence absence|always never|all none|more less|most least|many few|everyone nobody
majority minority|optional mandatory|optional required|temporary permanent|static dynamic
manual automatic|synchronous asynchronous|online offline|local remote|local global|lossy lossless
stateful stateless|mutable immutable|wired wireless|hypoglycemia hyperglycemia
hypothermia hyperthermia|hypotension hypertension|hypothyroidism hyperthyroidism
hypoglycaemia hyperglycaemia|acid base|acute chronic|benign malignant|inhale exhale|expand contract
freeze melt|freeze thaw|fill drain|tighten loosen|wake sleep|supply demand|surplus deficit|bull bear
inflation deflation|gross net|fixed variable|long-term short-term|inbound outbound|domestic foreign
upstream downstream|frontend backend|read write|parse serialize|hire fire|promote demote
marry divorce|question answer|cause effect|cause cure|symptom treatment|vegetarian carnivorous
sharp blunt|bright dark|loud quiet|clean dirty|raw cooked|sweet sour|brave cowardly|absorb emit
float sink|attract repel|import export|hit miss|capitalist communist|offense defense|war peace
"""

OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (first, second)
    for line in _PAIRS.strip().splitlines()
    for first, second in (pair.split() for pair in line.split("|"))
)
POLAR = frozenset(word for pair in OPPOSITES for word in pair)
