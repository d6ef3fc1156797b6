"""English-like prose from a seed: a small grammar over built-in words and names made of syllables.

It is text for filling a context and for training a tokenizer, and nothing else: no digits, so that every number in a
document is one that was put there, and enough different words that a vocabulary of some thousand entries can be learnt.
"""
import random

NOUNS = """answer apple arm army art autumn baker bank basket battle beach bell bird boat body book border bottle bread breath bridge
brother butter cabin candle captain castle cattle chain chair chapter child church circle city class cloth cloud coast coat colour
copper corner cotton country court cousin crowd daughter dawn desert dinner doctor door dream dust eagle earth edge engine evening
family farmer father fence field finger fire fish flag flame floor flower forest fortune friend fruit garden gate giant glass gold
grain grass guard guest hammer hand harbour harvest heart hill history home honey horse hospital hotel hour house hunter island
jacket journey judge kettle king kitchen knife ladder lake lamp language leaf leather lesson letter library light lion market master
meadow meal merchant message metal milk mill minute mirror moment money month moon morning mother mountain mouth music nail name
neighbour night noise north ocean office orange orchard owner paint palace paper parent party path pepper picture piece pilot place
planet plant plate pocket poem powder price prince prison promise purpose queen question rain reason ribbon river road robe rock
roof room root rope sailor salt sand school season secret shadow sheep shelf ship shirt shoe shop shore shoulder silence silver
singer sister skin sky sleep smile smoke snow soldier song sound south spider spoon spring stable star station stone storm story
stranger street sugar summer table tailor teacher temple thunder tiger timber tower town trade train traveller tree valley village
visitor voice wagon wall water weather wheel wind window winter wood word world yard year""".split()
VERBS = """accept admire answer ask believe borrow break bring build buy call carry catch change choose climb close collect cover cross
describe discover divide draw enjoy enter explain fear feed find finish follow forget gather give greet guard guide hear help hide
hold hope hurry imagine inspect join keep know laugh lead learn leave lend lift light like listen lose love measure meet mend miss
move need notice offer open order paint pass pay plan please praise prefer prepare promise protect pull push raise reach receive
remember repair reply report rescue rest return ride rise search sell send serve share shout show sing sit speak spend stand start
stay study surprise take teach thank touch trust turn understand visit wait walk want warm warn wash watch welcome wish wonder
work worry write""".split()
ADJECTIVES = """ancient angry bitter black blue brave bright broad broken brown busy calm careful cheerful clean clear clever cold common
curious dark deep distant dry early eastern empty faithful false famous fierce fine foreign fresh friendly full gentle golden grand
great green grey happy heavy hidden high holy honest hungry idle kind large late lazy little lonely long loud lucky modest narrow
new noble northern old open pale patient plain pleasant polite poor proud quick quiet rare ready red rich rough round royal sad
scarlet sharp short silent silver simple slow small soft solemn southern square steady steep stern strange strong sudden sweet
tall tender thick thin thirsty tired tiny true ugly useful vast warm weak western wet white whole wide wild wise wooden young""".split()
ADVERBS = """again almost alone already always away badly bravely briefly calmly carefully certainly clearly closely daily deeply early
easily eagerly even exactly fairly finally firmly gently gladly gravely hardly hastily honestly kindly lately loudly merely nearly
never often only openly partly patiently perhaps plainly politely promptly proudly quickly quietly rarely readily really seldom
silently simply slowly softly sometimes soon still suddenly surely swiftly then together truly usually warmly widely wisely""".split()
PREPOSITIONS = """about above across after against along among around before behind below beside between beyond by down during for from in
inside into near of off on over past since through to toward under until up upon with within without""".split()
CONNECTIVES = "and but so while because although though when where if unless until as before after".split()
OPENINGS = ["In the end", "At first", "After a while", "By noon", "That year", "Long ago", "Not far away", "For a moment", "Every evening",
            "Once more", "Without a word", "In those days", "Before dawn", "As it happened", "Late in the season"]
ONSETS = "b br c ch cl d dr f fl g gr h j k kr l m n p pl r s sh st t th tr v w".split()
VOWELS = "a a e e i i o o u ai ea ia oa".split()
CODAS = "n r l s th m nd rn st x".split() + [""] * 12


def make_names(count, seed):
    """Different capitalised names of two or three syllables."""
    source = random.Random(seed)
    names = {}
    while len(names) < count:
        name = "".join(source.choice(ONSETS) + source.choice(VOWELS) + source.choice(CODAS) for _ in range(source.choice((2, 2, 3))))
        names[name.capitalize()] = None
    return list(names)


class Prose:
    """An endless source of sentences. Equal seeds give equal text on every machine."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.people = make_names(900, "people")
        self.places = make_names(600, "places")

    def pick(self, words):
        # Squaring the draw prefers the first words, as real text prefers a few.
        return words[int(len(words) * self.random.random() ** 2)]

    def noun_phrase(self):
        draw = self.random.random()
        if draw < 0.25:
            return self.random.choice(self.people)
        noun = self.random.choice(NOUNS)
        if draw < 0.45:
            return f"the {noun}"
        if draw < 0.70:
            return f"the {self.pick(ADJECTIVES)} {noun}"
        if draw < 0.80:
            return f"{self.random.choice(self.people)}'s {noun}"
        if draw < 0.90:
            return f"the {noun} of {self.random.choice(self.places)}"
        return f"their {self.random.choice(ADJECTIVES)} {noun}"

    def clause(self):
        verb = self.random.choice(VERBS)
        form = self.random.choice(("would {}", "could {}", "did not {}", "had to {}", "wanted to {}", "began to {}", "came to {}"))
        parts = [self.noun_phrase(), form.format(verb), self.noun_phrase()]
        if self.random.random() < 0.4:
            parts.insert(1, self.pick(ADVERBS))
        if self.random.random() < 0.5:
            parts += [self.pick(PREPOSITIONS), self.noun_phrase()]
        return " ".join(parts)

    def sentence(self):
        text = self.clause()
        if self.random.random() < 0.35:
            text += f", {self.random.choice(CONNECTIVES)} {self.clause()}"
        if self.random.random() < 0.2:
            text = f"{self.random.choice(OPENINGS)}, {text}"
        return text[0].upper() + text[1:] + self.random.choices(".?!", (12, 1, 1))[0]

    def paragraph(self):
        return " ".join(self.sentence() for _ in range(self.random.randint(3, 9)))

    def text(self, size):
        """At least `size` characters, in paragraphs."""
        parts, length = [], 0
        while length < size:
            parts.append(self.paragraph())
            length += len(parts[-1]) + 2
        return "\n\n".join(parts) + "\n"
