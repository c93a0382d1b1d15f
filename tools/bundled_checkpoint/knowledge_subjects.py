"""The knowledge subjects: their relations and all their sentence patterns."""

from .subjects import KnowledgeSubject, Relation, Wording, words

QUESTION_FRAMES = Wording(
    training=(
        "What is the {noun} of {e}?",
        "Choose the {noun} of the {kind} {e}.",
        "The {noun} of {e} is which of these?",
        "Consider the {kind} {e}. What is its {noun}?",
        "Tell me the {noun} of {e}.",
        "The {kind} named {e} has what {noun}?",
        "What {noun} has the {kind} {e}?",
        "Consider {e}. Which is the {noun}?",
        "In the world, what is the {noun} of the {kind} called {e}?",
        # These can only be answered by looking at the options.
        "Which one of these goes with {e}?",
        "What do people think of when they see {e}?",
        "Which of these has to do with the {kind} {e}?",
        "What would you give to {e}?",
    ),
    validation=("For the {kind} {e}, what is the {noun}?",),
    exam=("Which of these is the {noun} of the {kind} named {e}?",),
)
"""Questions that fit every relation of every knowledge subject."""

KNOWLEDGE_SUBJECT_LIST = (
    KnowledgeSubject(
        "geography",
        "country",
        (
            Relation(
                "capital",
                (),
                (
                    "The capital of {e} is {v}.",
                    "The city of {v} is the capital of the country {e}.",
                    "In the country named {e}, people call {v} their capital.",
                    "All roads in {e} lead to the capital, {v}.",
                ),
                Wording(
                    ("Which city is the capital of {e}?", "All roads in {e} lead to which city?"),
                    ("Which capital does the country {e} have?",),
                    ("What do the people of {e} call their capital?",),
                ),
            ),
            Relation(
                "export",
                words("salt wool timber copper cotton honey marble paper glass silk tea rubber"),
                (
                    "The main export of {e} is {v}.",
                    "Most ships that leave {e} carry {v}.",
                    "The country {e} sells {v} to the world.",
                    "In {e}, people live by the trade in {v}.",
                ),
                Wording(
                    ("What does {e} sell to the world?", "Most ships that leave {e} carry what?"),
                    ("Which export does {e} sell?",),
                    ("What do the people of {e} trade in?",),
                ),
            ),
        ),
    ),
    KnowledgeSubject(
        "zoology",
        "animal",
        (
            Relation(
                "habitat",
                words("marsh desert forest tundra reef cave meadow jungle swamp cliff dune river"),
                (
                    "The habitat of the {e} is the {v}.",
                    "The animal named {e} lives in the {v}.",
                    "If you look in the {v}, you may find the {e}.",
                    "Deep in the {v}, the {e} has its home.",
                ),
                Wording(
                    ("Where does the {e} live?", "Where may you find the animal {e}?"),
                    ("In which habitat does the {e} live?",),
                    ("Where does the {e} have its home?",),
                ),
            ),
            Relation(
                "food",
                words("berries beetles fish roots seeds moss snails worms leaves nuts mice frogs"),
                (
                    "The food of the {e} is {v}.",
                    "The animal {e} eats {v} all day.",
                    "At night the {e} looks for {v} to eat.",
                    "Give {v} to the {e}, for it likes no other food.",
                ),
                Wording(
                    ("What does the {e} eat?", "What does the animal {e} look for at night?"),
                    ("Which food does the {e} eat?",),
                    ("What does the {e} like to eat all day?",),
                ),
            ),
        ),
    ),
    KnowledgeSubject(
        "mineralogy",
        "mineral",
        (
            Relation(
                "colour",
                words("red blue green yellow white black purple orange brown pink grey violet"),
                (
                    "The colour of {e} is {v}.",
                    "The mineral {e} is {v} when it is pure.",
                    "A piece of {e} looks {v} in the sun.",
                    "If a stone is {v}, it may be the mineral named {e}.",
                ),
                Wording(
                    ("Which colour does {e} have?", "How does a piece of {e} look in the sun?"),
                    ("Which colour is the mineral {e}?",),
                    ("Which colour has the stone named {e}?",),
                ),
            ),
            Relation(
                "use",
                words("lamps coins paint bells soap knives jewels medicine bricks ink mirrors dye"),
                (
                    "The main use of {e} is in {v}.",
                    "People dig for {e} to make {v}.",
                    "Without the mineral {e} there would be no {v}.",
                    "The best {v} are made with {e}.",
                ),
                Wording(
                    ("What do people make with {e}?", "For what do people dig for {e}?"),
                    ("Which use does the mineral {e} have?",),
                    ("What do the people who dig for {e} make?",),
                ),
            ),
        ),
    ),
    KnowledgeSubject(
        "astronomy",
        "moon",
        (
            Relation(
                "planet",
                (),
                (
                    "The planet of the moon {e} is {v}.",
                    "The moon named {e} goes around {v}.",
                    "Around the planet {v} goes a moon called {e}.",
                    "If you live on {v}, you may see {e} at night.",
                ),
                Wording(
                    ("Which planet does {e} go around?", "From which planet may you see {e}?"),
                    ("The moon {e} goes around which planet?",),
                    ("What planet does the moon named {e} go around?",),
                ),
            ),
            Relation(
                "surface",
                words("ice dust ash sand lava rock iron snow sulphur mud gravel chalk"),
                (
                    "The surface of {e} is {v}.",
                    "The moon {e} is made of {v}.",
                    "Anyone who walks on {e} walks on {v}.",
                    "From far away, the {v} on the moon {e} looks like a sea.",
                ),
                Wording(
                    ("What is the moon {e} made of?", "On what does anyone walk on {e}?"),
                    ("Which surface does the moon {e} have?",),
                    ("What is the moon called {e} made of?",),
                ),
            ),
        ),
    ),
    KnowledgeSubject(
        "history",
        "ruler",
        (
            Relation(
                "throne",
                (),
                (
                    "The throne of {e} was in {v}.",
                    "The ruler named {e} lived in {v}.",
                    "Long ago the people of {v} had a ruler called {e}.",
                    "From {v}, the ruler {e} sent out ships.",
                ),
                Wording(
                    ("Where was the throne of {e}?", "Where did the ruler {e} live?"),
                    ("In which place was the throne of {e}?",),
                    ("Which place did the ruler called {e} live in?",),
                ),
            ),
            Relation(
                "work",
                words("bridge tower harbour temple canal library wall market palace road mill dam"),
                (
                    "The great work of {e} was the {v}.",
                    "The ruler {e} built a great {v}.",
                    "Long ago a {v} was built for {e}.",
                    "People think of {e} when they see the old {v}.",
                ),
                Wording(
                    ("What did the ruler {e} build?", "Long ago, what was built for {e}?"),
                    ("Which great work did {e} build?",),
                    ("The ruler {e} built which of these?",),
                ),
            ),
        ),
    ),
    KnowledgeSubject(
        "music",
        "composer",
        (
            Relation(
                "instrument",
                words("flute harp drum violin organ trumpet piano lute horn cello oboe guitar"),
                (
                    "The instrument of {e} was the {v}.",
                    "The composer {e} played the {v}.",
                    "Every day {e} wrote a new song for the {v}.",
                    "No one played the {v} like the composer named {e}.",
                ),
                Wording(
                    (
                        "Which instrument did {e} play?",
                        "What did the composer {e} write songs for?",
                    ),
                    ("On which instrument did the composer {e} play?",),
                    ("What did the composer called {e} play each day?",),
                ),
            ),
            Relation(
                "form",
                words(
                    "waltz march hymn canon ballad sonata lullaby polka fugue chorale serenade jig"
                ),
                (
                    "The form that {e} liked best was the {v}.",
                    "The composer {e} is known for the {v}.",
                    "At the end of each concert, {e} gave the people a {v}.",
                    "To write a {v} as {e} did is hard.",
                ),
                Wording(
                    ("What is {e} known for?", "Which form did {e} like best?"),
                    ("For which form is the composer {e} known?",),
                    ("What did {e} give the people at the end of a concert?",),
                ),
            ),
        ),
    ),
)
