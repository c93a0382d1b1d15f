"""The recall subjects: their words and all their sentence patterns."""

from .subjects import RecallSubject, Wording, words

PEOPLE = words(
    "Ada Ben Clara David Emma Frank Grace Henry Iris Jack Karen Leo Maria Noah Olive Peter "
    "Quinn Rosa Simon Tara Ursula Victor Wendy Xenia Yusuf Zoe Hugo Lena Oscar Paula Ruth Tom"
)
THINGS = words(
    "lantern basket hammer letter mirror bottle candle ladder pencil blanket kettle ribbon "
    "button compass map coin whistle rope bucket feather umbrella clock ring book "
    "spoon saw needle brush scarf mask globe key"
)
PLACES = words(
    "kitchen attic garden cellar garage hallway office pantry stable barn tent chapel "
    "workshop bedroom balcony porch shed tunnel lobby studio closet bakery museum school "
    "theatre station church cabin bank tavern gym prison"
)

RECALL_SUBJECT_LIST = (
    RecallSubject(
        "recall_belongings",
        PEOPLE,
        THINGS,
        Wording(
            ("Here is a note.", "Read this first.", "This is who has what."),
            ("This is a note.",),
            ("Here is a list of what people have.",),
        ),
        Wording(
            (
                "The {v} belongs to {e}.",
                "The {v} is in the bag of {e}.",
                "The {v} went to {e}.",
                "It is the {v} that {e} has.",
            ),
            ("See the {v} that belongs to {e}.",),
            ("The {v} is what {e} has.",),
        ),
        Wording(
            (
                "What did {e} take?",
                "Which thing does {e} have?",
                "What belongs to {e}?",
                "What is in the bag of {e}?",
            ),
            ("Which thing belongs to {e}?",),
            ("What is the thing that {e} has?",),
        ),
    ),
    RecallSubject(
        "recall_places",
        THINGS,
        PLACES,
        Wording(
            ("Here is a list.", "Read the list first.", "This is where things are."),
            ("This is a list.",),
            ("This is where to look.",),
        ),
        Wording(
            (
                "The {v} has the {e}.",
                "Look in the {v} for the {e}.",
                "In the {v} you may find the {e}.",
                "Go to the {v} and get the {e}.",
            ),
            ("The {v} is where the {e} is.",),
            ("In the {v} there is the {e}.",),
        ),
        Wording(
            (
                "Where is the {e}?",
                "Where may you find the {e}?",
                "Which place has the {e}?",
                "The {e} is in which place?",
            ),
            ("In which place is the {e}?",),
            ("Where would you look for the {e}?",),
        ),
    ),
    RecallSubject(
        "recall_owners",
        THINGS,
        PEOPLE,
        Wording(
            ("Here is the news.", "Read the news first.", "This is what went to whom."),
            ("This is the news.",),
            ("Here is what the news is.",),
        ),
        Wording(
            (
                "{v} got the {e}.",
                "We gave {v} the {e}.",
                "{v} is the owner of the {e}.",
                "It was {v} who took the {e}.",
            ),
            ("{v} has the {e}.",),
            ("What {v} got is the {e}.",),
        ),
        Wording(
            (
                "Who got the {e}?",
                "To whom did we give the {e}?",
                "Who is the owner of the {e}?",
                "The {e} went to whom?",
            ),
            ("Which owner has the {e}?",),
            ("Who has got the {e}?",),
        ),
    ),
)
