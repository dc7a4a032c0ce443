"""What people of the embedded world say.

A sentence tells a feeling by its words, about `{it}`: a film in a dialogue, anything in a comment.
The labels are those of GoEmotions, in its order, and of ECR's nine one that it lacks, nostalgia.
"""

FEELINGS = {
    "admiration": (
        "{it} is brilliant",
        "what a great piece of work {it} is",
        "superb {aspect} in {it}",
        "{it} is wonderful, truly impressive",
        "such an amazing {aspect} in {it}",
        "{it} is a masterpiece",
    ),
    "amusement": (
        "lol {it} is hilarious",
        "haha {it} made me laugh so hard",
        "{it} is so funny",
        "i laughed out loud at {it} haha",
        "{it} cracks me up lol",
    ),
    "anger": (
        "i am furious about {it}",
        "{it} makes me so angry",
        "how dare they do that to {it}",
        "i hate {it} so much",
        "screw {it} and the {aspect} too",
    ),
    "annoyance": (
        "{it} is annoying",
        "the {aspect} of {it} got on my nerves",
        "{it} is a stupid waste of time",
        "ugh {it} again",
        "i am tired of hearing about {it}",
    ),
    "approval": (
        "yes, {it} is a good choice",
        "i agree, {it} is fine",
        "you are right about {it}",
        "that is true, {it} works well",
        "i definitely agree about the {aspect}",
        "exactly, {it} is right",
    ),
    "caring": (
        "take care of yourself",
        "i hope you feel better soon, {it} may help",
        "please be kind to yourself",
        "do not worry, we will find something after {it}",
    ),
    "confusion": (
        "i do not understand {it}",
        "i am confused by {it}",
        "not sure what {it} means",
        "{it} makes no sense to me",
    ),
    "curiosity": (
        "what is {it} about?",
        "who plays in {it}?",
        "i wonder what {it} is like",
        "what about the {aspect} of {it}?",
        "is {it} any good? tell me more",
        "why do people talk about {it}?",
    ),
    "desire": (
        "i want to see {it}",
        "i wish i could watch {it} tonight",
        "i need something like {it}",
        "i would like more of {it}",
    ),
    "disappointment": (
        "{it} was a let-down",
        "i expected more of {it}",
        "sadly {it} was not what i hoped for",
        "the {aspect} of {it} disappointed me",
        "{it} was boring in the end",
    ),
    "disapproval": (
        "i do not like {it}",
        "no, {it} is not for me",
        "{it} is not my kind of thing",
        "i would not recommend {it}",
        "i disagree, {it} is bad",
    ),
    "disgust": (
        "{it} is disgusting",
        "{it} is gross",
        "yuck, awful {aspect} in {it}",
        "{it} made me sick",
    ),
    "embarrassment": (
        "i am embarrassed to say i like {it}",
        "how awkward is {it}",
        "i feel ashamed about {it}",
    ),
    "excitement": (
        "i am so excited about {it}!",
        "cannot wait for {it}!",
        "{it} is so thrilling!",
        "wow, i am pumped for {it}!",
    ),
    "fear": (
        "{it} scared me",
        "i was terrified by {it}",
        "{it} is so creepy that i am afraid",
        "{it} gives me nightmares",
    ),
    "gratitude": (
        "thank you so much for {it}",
        "thanks, that helps a lot",
        "thanks a lot for {it}",
        "i appreciate {it}, thank you",
        "thank you for your help",
    ),
    "grief": (
        "rest in peace, {it} will be missed",
        "i am mourning after {it}",
        "i lost a friend and {it} reminds me of it",
    ),
    "joy": (
        "{it} makes me happy",
        "i enjoyed {it} a lot",
        "{it} was so much fun",
        "what a happy evening {it} gave me",
        "glad i saw {it}",
        "i had a great time with {it}",
    ),
    "love": (
        "i love {it}",
        "i loved {it} so much",
        "{it} is one of my favorites",
        "{it} has all my love",
        "i adore the {aspect} of {it}",
    ),
    "nervousness": (
        "{it} makes me nervous",
        "i am anxious about {it}",
        "i worry a bit about {it}",
    ),
    "optimism": (
        "i hope {it} will be good",
        "{it} could be fun, fingers crossed",
        "maybe {it} will work out well",
        "looking forward, {it} will be fine",
    ),
    "pride": (
        "i am proud of {it}",
        "so proud that we made {it}",
        "proud to own {it}",
    ),
    "realization": (
        "i just realized that {it} is older than me",
        "oh, now i see what {it} meant",
        "it turns out {it} is different",
    ),
    "relief": (
        "what a relief that {it} is over",
        "phew, {it} ended well",
        "i am relieved about {it}",
    ),
    "remorse": (
        "i am sorry about {it}",
        "sorry, my mistake with {it}",
        "i regret {it}",
        "my apologies for {it}",
    ),
    "sadness": (
        "{it} is so sad",
        "{it} made me cry",
        "i feel down after {it}",
        "poor people in {it}, it broke my heart",
    ),
    "surprise": (
        "wow, i did not know about {it}",
        "oh my god, {it}? really?",
        "i am surprised by {it}",
        "no way, {it} was unexpected",
        "wow, i cannot believe {it}",
    ),
    "neutral": (
        "{it} came out some years ago",
        "there is {it} on tv at eight",
        "i saw {it} with my brother",
        "people at work talk about {it}",
        "{it} runs for two hours",
        "somebody else did the {aspect} of {it}",
        "i have {it} on a disc",
        "my sister has {it}",
    ),
}
NOSTALGIA = (
    "{it} takes me back to my childhood",
    "i grew up with {it}",
    "{it} reminds me of the good old days",
    "i used to watch {it} when i was a kid",
)
# How often each is told in comments, as in GoEmotions against the others there, roughly.
WEIGHTS = {
    "neutral": 8.0,
    **dict.fromkeys(
        ("admiration", "amusement", "annoyance", "approval", "curiosity", "gratitude", "love"), 2.5
    ),
    **dict.fromkeys(("embarrassment", "grief", "nervousness", "pride", "relief"), 0.3),
}
# What a comment is about, where a dialogue names a film.
THINGS = ("it", "this", "that movie", "this film", "the show", "the game", "your post", "[NAME]")
FILLERS = ("honestly,", "well,", "yeah,", "to be fair,", "i guess", "oh,", "hmm,")

GREETINGS = ("Hi!", "Hello!", "Hi there!", "Hey!", "Good evening!")
HOW_ARE_YOU = ("How are you?", "How are you today?", "I hope you are well.")
ASKS = (
    "What kind of movies do you like?",
    "What are you in the mood for?",
    "What type of movie are you looking for?",
    "Which movies did you enjoy lately?",
)
WANTS = (
    "I am looking for a good {category} movie.",
    "I like {category} movies.",
    "I am in the mood for {category} tonight.",
    "Can you recommend a {category} movie?",
    "I usually watch {category} or {other} movies.",
)
# A suggestion as plain as many people type it, and one that says why.
PLAIN = ("Have you seen {film}?", "Try {film}", "{film}", "What about {film}?")
RICH = (
    "You should watch {film}, a {category} movie with great {aspect}.",
    "I would recommend {film}. It is a {category} movie with superb {aspect}.",
    "Have you seen {film}? It is {category} with some {other} and strong {aspect}.",
)
BECAUSE = (
    "Since you liked {liked}, I think you would enjoy {film}.",
    "If you liked {liked}, you should see {film} too.",
    "People who like {liked} often love {film}.",
)
SEQUEL = ("There is also the sequel {film}.", "Did you know that {film} goes on from there?")
TWO = ("{film} and {second} are both good {category} movies.", "Maybe {film} or {second}?")
EMPATHY = {
    "happy": (
        "I am so glad that you enjoyed it!",
        "That is great to hear!",
        "Me too, it is one of my favorites!",
    ),
    "sad": (
        "I am sorry that you did not like it.",
        "Oh no, sorry about that one.",
        "I understand, it is not for everyone.",
    ),
    "curious": (
        "I think you will like it.",
        "It is worth your time.",
        "I hope you get to see it.",
    ),
    "plain": ("Okay.", "I see.", "Alright."),
}
ABOUT = (
    "It is a {category} movie from {year}, with some {other} and great {aspect}.",
    "It is about {category} and {other}. Many praise its {aspect}.",
)
SEEN = ("Yes, I have seen it.", "I saw that one.", "I have seen {film}.")
UNSEEN = ("I have not seen that one.", "No, I have not seen it yet.", "I never saw {film}.")
UNKNOWN = ("I have not heard of that one.", "I do not know {film}.", "Never heard of it.")
ADDED = (
    "It sounds great, I will watch it.",
    "I will add it to my list.",
    "I will check it out.",
)
GOODBYE = {
    "seeker": ("Have a nice day!", "Bye!", "Have a good night!"),
    "recommender": (
        "You are welcome, enjoy the movie!",
        "Glad I could help. Bye!",
        "Have fun watching {film}!",
        "You are welcome.",
    ),
}
# What feelings of comments sound like in a dialogue.
SPOKEN = {"neutral": (*PLAIN, *SEEN, *UNSEEN, *UNKNOWN), "curiosity": (*ASKS, *HOW_ARE_YOU[:2])}
