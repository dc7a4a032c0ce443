"""One request, an honest explanation of it, and the cheap tricks that must not beat it."""

from shielded_recrl.explainer.prompts import Item, Request

CATALOGUE = [
    Item("", (), ""),
    Item("Runic Circuit", ("Fantasy", "Science Fiction"), ""),
    Item("Rustic Wedding", ("Romance",), ""),
    Item("Neon Circuit", ("Science Fiction",), ""),
    Item("Viking Chronicle 2", ("History", "Fantasy"), ""),
    Item("Desert Cookbook", ("Cooking",), ""),
]
VOCABULARY = frozenset(name for item in CATALOGUE for name in item.categories)
REQUEST = Request(
    user=1,
    item=1,
    about=CATALOGUE[1],
    history=(CATALOGUE[2], CATALOGUE[3], CATALOGUE[4]),
    prefix=(1,),
    prompt=(1, 2),
)
HONEST = (
    "Because you liked Neon Circuit, you may enjoy the Science Fiction in Runic Circuit as well."
)
TRICKS = {
    "empty": "",
    "punctuation": "... !!! ?",
    "prompt echo": "Liked: Rustic Wedding; Neon Circuit; Viking Chronicle 2 "
    "Next: Runic Circuit (Fantasy, Science Fiction) Why:",
    "prompt echo that ends well": "Liked: Rustic Wedding; Neon Circuit; Viking Chronicle 2. "
    "Next: Runic Circuit (Fantasy, Science Fiction). Why.",
    "names of the prompt": "Rustic Wedding Neon Circuit Viking Chronicle 2 Runic Circuit "
    "Fantasy Science Fiction.",
    "keyword stuffing": "Runic Circuit Fantasy Neon Circuit Science Fiction Viking Chronicle 2 "
    "Romance Runic Circuit History Rustic Wedding.",
    "constant sentence": "This is a good choice that many people enjoy and you may like it too.",
    "title twenty times": "Runic Circuit " * 20,
    "sentence twenty times": "You may enjoy Runic Circuit. " * 20,
    "unsupported claims": "Because you liked Desert Cookbook, you may enjoy the Cooking in "
    "Runic Circuit as well.",
    "praise of the history": "Rustic Wedding is one of the best and Neon Circuit is one more that "
    "many people like for an evening with Romance.",
    "categories of others": "Because you liked Neon Circuit, you may enjoy the Romance and the "
    "History in Runic Circuit as well.",
}
