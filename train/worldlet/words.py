"""The words the small language model knows: the prompt's form, the question templates, the tokenizer.

Lives here: everything about the words. Elsewhere: random texts made of them (grammar.py), training
(build.py). The scenes of the worldlet ask with the same words; a test holds the two together.
"""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"

COLORS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange", "pink", "brown", "gray")
PLACES = ("left", "middle", "right")
COUNTS = ("one", "two", "three", "four", "five")

# {o} is the thing asked about; the scenes only ask about the ball and the ramps.
THINGS = ("ball", "block", "cube", "box", "disk", "cup")
COUNTED = ("ramps", "walls", "blocks", "cups", "lines")
QUESTIONS: dict[str, tuple[str, ...]] = {
    "land": (
        "where will the {o} land ?",
        "in which bin will the {o} land ?",
        "where will the {o} end up ?",
        "which bin will the {o} come to rest in ?",
    ),
    "below": (
        "which bin is the {o} above now ?",
        "which bin is directly below the {o} now ?",
        "what bin is under the {o} at the start ?",
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
}
FAMILIES = {"land": "places", "below": "places", "color": "colors", "count": "counts"}
ANSWERS = {"land": PLACES, "below": PLACES, "color": COLORS, "count": COUNTS}

# The answer follows what it is about: read from left to right, "the left bin is below the ball" hides what
# `left` belongs to until it is past, and few forms do: with five per family the places were not learned.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "land": (
        "the {o} will land {a} .",
        "the {o} will land in the {a} bin .",
        "the {o} will end up {a} .",
        "at the end the {o} will come to rest in the {a} bin .",
    ),
    "below": (
        "the {o} is now above {a} .",
        "the {o} is above the {a} bin now .",
        "directly below the {o} now is the {a} bin .",
        "at the start the bin under the {o} is {a} .",
    ),
    "color": ("the {o} is {a} .", "the color of the {o} is {a} ."),
    "count": ("the number of {o} is {a} .", "of {o} you can see {a} ."),
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
        does 0 1 2 3 4 5 6 7 8 9 10""".split()  # noqa: SIM905 (prose reads better than 250 quoted words)
    )
)


def format_question(question: str) -> str:
    """The text between the world tokens and the answer; the answer follows as `" " + answer`."""
    return f"question: {question} answer:"


def vocabulary() -> list[str]:
    """All known tokens in their fixed order: special tokens, punctuation, then words by first use."""
    words = [PAD, BOS, EOS, UNK, *".,:;?!'\"()-"]
    for family, templates in QUESTIONS.items():
        for text in (format_question(""), *templates, *STATEMENTS[family]):
            words += text.replace("{o}", "").replace("{a}", "").replace(":", " :").split()
    words += [*PLACES, *COLORS, *COUNTS, *THINGS, *COUNTED, *COMMON]
    return list(dict.fromkeys(words))


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
