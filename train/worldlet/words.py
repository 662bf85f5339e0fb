"""The words that the small language model knows: the form of the prompt, the question templates, the tokenizer.

The scenes of the worldlet ask with the same words; a test compares the two.
"""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"

COLORS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange", "pink", "brown", "gray")
BINS = ("left", "middle", "right")
SIDES = ("left", "right")
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
YES_NO = ("yes", "no")

# What the scenes ask, word for word; {o} is the thing asked about, one of THINGS where there is a choice.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "land": (
        "where will the ball land ?",
        "in which bin will the ball land ?",
        "where will the ball end up ?",
        "which bin will the ball come to rest in ?",
    ),
    "below": (
        "which bin is directly below the ball now ?",
        "which bin is the ball above now ?",
        "what bin is under the ball at the start ?",
    ),
    "color": (
        "what color is the {o} ?",
        "which color does the {o} have ?",
        "what is the color of the {o} ?",
    ),
    "count": (
        "how many {o} are there ?",
        "how many {o} can you see ?",
        "what is the number of {o} ?",
    ),
    "first": (
        "which ball will land first ?",
        "which ball will reach the ground first ?",
        "which ball will be the first to land ?",
    ),
    "lower": (
        "which ball is lower now ?",
        "which ball is the lower one now ?",
        "which ball is closer to the ground now ?",
    ),
    "left": (
        "which ball is on the left now ?",
        "which ball is further left now ?",
        "which ball is the left one now ?",
    ),
    "fall": (
        "will the tower fall ?",
        "will the tower fall down ?",
        "will the blocks fall ?",
    ),
    "above": (
        "is the top block above the bottom block now ?",
        "is the top block directly over the bottom block now ?",
        "is the bottom block under the top block now ?",
    ),
    "touch": (
        "will the ball touch the block ?",
        "will the ball hit the block ?",
        "will the ball reach the block ?",
    ),
    "toward": (
        "does the ramp below the ball slope down to the block ?",
        "does the ramp under the ball lead to the block ?",
        "is the block on the low side of the ramp below the ball ?",
    ),
    "side": (
        "on which side of the ball is the block now ?",
        "is the block left or right of the ball now ?",
    ),
}
THINGS: dict[str, tuple[str, ...]] = {"color": ("ball", "block", "top block"), "count": ("ramps", "blocks")}
ANSWERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("land", "below"), BINS),
    **dict.fromkeys(("color", "first", "lower", "left"), COLORS),
    "count": COUNTS,
    **dict.fromkeys(("fall", "above", "touch", "toward"), YES_NO),
    "side": SIDES,
}
FAMILIES = {BINS: "places", COLORS: "colors", COUNTS: "counts", YES_NO: "yes/no", SIDES: "sides"}

# {a} is the answer, {not} stands where a "no" is said. The answer follows what it is about: read from left to
# right, "the left bin is below the ball" hides what `left` belongs to until it is past, and few forms do: with
# five per family the places were not learned.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "land": (
        "the ball will land {a} .",
        "the ball will land in the {a} bin .",
        "the ball will end up {a} .",
        "at the end the ball will come to rest in the {a} bin .",
    ),
    "below": (
        "the ball is now above {a} .",
        "the ball is above the {a} bin now .",
        "directly below the ball now is the {a} bin .",
        "at the start the bin under the ball is {a} .",
    ),
    "color": ("the {o} is {a} .", "the color of the {o} is {a} ."),
    "count": ("the number of {o} is {a} .", "of {o} you can see {a} ."),
    "first": (
        "the ball that will land first is {a} .",
        "the first to reach the ground will be the {a} ball .",
    ),
    "lower": ("the ball that is lower now is {a} .", "closer to the ground now is the {a} ball ."),
    "left": ("the ball that is further left now is {a} .", "on the left now is the {a} ball ."),
    "fall": ("the tower will {not} fall .", "the blocks will {not} fall down ."),
    "above": (
        "the top block is {not} above the bottom block now .",
        "the top block is {not} directly over the bottom block now .",
        "the bottom block is {not} under the top block now .",
    ),
    "touch": (
        "the ball will {not} touch the block .",
        "the ball will {not} hit the block .",
        "the ball will {not} reach the block .",
    ),
    "toward": (
        "the ramp below the ball does {not} slope down to the block .",
        "the ramp under the ball does {not} lead to the block .",
        "the block is {not} on the low side of the ramp below the ball .",
    ),
    "side": ("seen from the ball the block is now {a} .", "the block is on the {a} side of the ball now ."),
}

# So that a near question tokenises. These words only appear as filler in training.
COMMON = tuple(
    dict.fromkeys(
        """a about after again all along also an and any are around as at away back be because before behind
        between big bigger body bottom bounce bounces by can center centre circle clear close closest come
        comes contact could describe did direction do does down drop dropped drops each edge eight empty end
        ends every exactly fall falling falls far fast final finally find finish finishes first fly for from
        front future get go goes going gravity ground has have he height here high higher hit hits hold how i
        if image in inside into is it its just large last leave left less line long low lower many may me
        more most move moved moves moving much my near next nine no none not nothing object objects of off
        on once only onto or other out outside over part past path picture place point position predict
        pushed put ramp rest resting roll rolled rolling rolls round say scene second see seen seven shape
        shown shows side simulation six slide slides slope slow small so some soon speed start starts stay
        stays stick still stop stops straight surface tell ten than that the their them then there these
        they thing things third this tilted time to top touch touches toward towards track under until up
        upper us very video view wall was we were what when where which while who why wide will with would
        yes you your zero bucket buckets bins divider dividers final floor tray slot happens happen
        happened colour lands landed landing ramp ball rests directly below above now later number color
        does cube box disk cup cups walls lines tower towers collide collides reach reaches topple topples
        stand stands touched 0 1 2 3 4 5 6 7 8 9 10""".split()  # noqa: SIM905 (prose reads better than 250 quoted words)
    )
)


def format_question(question: str) -> str:
    """The text between the world tokens and the answer; the answer follows as `" " + answer`."""
    return f"question: {question} answer:"


def questions_of(about: str) -> list[str]:
    """Every wording of one kind of question, as the scenes write it (no space before the mark)."""
    return [
        template.format(o=thing).replace(" ?", "?")
        for template in QUESTIONS[about]
        for thing in THINGS.get(about, ("",))
    ]


def state(template: str, thing: str, answer: str) -> str:
    """A statement that says `answer` of `thing`; "yes" and "no" are said by its form."""
    filled = template.format_map({"o": thing, "a": answer, "not": "not" if answer == "no" else ""})
    return " ".join(filled.split())


def vocabulary() -> list[str]:
    """All known tokens in their fixed order: special tokens, punctuation, then words by first use."""
    words = [PAD, BOS, EOS, UNK, *".,:;?!'\"()-"]
    for about, templates in QUESTIONS.items():
        for text in (format_question(""), *templates, *STATEMENTS[about], *THINGS.get(about, ())):
            words += text.replace("{o}", "").replace("{a}", "").replace("{not}", "not").replace(":", " :").split()
    for answers in FAMILIES:
        words += answers
    return list(dict.fromkeys([*words, *COMMON]))


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Word by word, lower case, punctuation apart; `<bos>` in front unless special tokens are refused."""
    table = {word: number for number, word in enumerate(vocabulary())}
    inner = Tokenizer(WordLevel(table, unk_token=UNK))
    inner.normalizer = Lowercase()
    inner.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    inner.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, table[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
