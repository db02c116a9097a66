"""What each language expects to read: word frequencies, and the bits a word carries under them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import repeat

import regex

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}]+)*")
ASCII_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)*")  # the same of lowercased ASCII, in less time
LANGUAGES = ("en", "de", "es", "fr", "it", "pt", "nl")
NEGATIONS = frozenset(
    """no not never none nobody nothing neither nor without cannot
    nicht nein kein keine keinen keinem keiner keines nie niemals niemand nichts ohne weder
    nunca nadie nada ningún ninguna ninguno ni sin
    ne pas jamais rien aucun aucune sans non mai niente nessuno nessuna senza né
    não ninguém nenhum nenhuma nem sem niet geen nooit niemand niets zonder""".split()
)
# Words that are said to be polite: they inform of nothing, however rare they are.
PLEASANTRIES = frozenset(
    """hi hello hey wow yay haha congrats congratulations thanks thank bye goodbye welcome
    hallo danke tschüss glückwunsch herzlichen hola gracias adiós felicidades enhorabuena
    bonjour merci salut félicitations ciao grazie complimenti olá obrigado obrigada parabéns
    bravo dank gefeliciteerd""".split()
)
# Words of praise, sympathy and agreement, and how one introduces them: they say how the speaker
# takes what was said, and nothing about the world.
ATTITUDES = frozenset(
    """amazing awesome great fantastic wonderful incredible brilliant lovely nice cool sweet perfect
    good best terrific fabulous stunning gorgeous beautiful impressive inspiring adorable cute
    interesting exciting excited glad happy proud sorry grateful thankful thrilled sure welcome
    sounds sound looks seems absolutely totally definitely exactly indeed agree agreed appreciate
    hope hopefully well hear let guess think know believe understand mean bet wish imagine wonder
    love loved like miss wait forward catch care cheers luck enjoy hug hugs please lol omg yeah yep
    yup nope okay ok stay soon later
    toll super prima schön wunderbar fantastisch großartig klasse stark spannend stolz froh freue
    freut genau klar stimmt natürlich hoffe hoffentlich glaube denke weiß finde liebe drücke daumen
    klingt bald     bitte viel spaß erfolg
    genial fantástico fantástica increíble maravilloso maravillosa bonito bonita precioso preciosa
    estupendo perfecto alegro alegra orgulloso orgullosa feliz claro exacto vale espero creo pienso
    entiendo encanta suerte
    génial formidable magnifique fantastique incroyable superbe parfait content contente heureux
    heureuse fier fière exactement accord espère crois pense comprends adore plaît
    fantastico fantastica incredibile meraviglioso bello bella felice orgoglioso spero credo penso
    capisco certo perfetto
    incrível maravilhoso maravilhosa lindo linda feliz orgulhoso acho penso entendo certo
    geweldig fantastisch prachtig mooi leuk blij trots hoop denk geloof snap""".split()
)
# Who speaks of themselves; in languages that drop the pronoun, the verbs that say so.
FIRST_PERSON = frozenset(
    """i we my our ich wir mein meine meinen meinem meiner unser unsere unseren unserem
    yo nosotros nosotras mi mis nuestro nuestra tengo tenemos soy somos estoy estamos vivo vivimos
    trabajo trabajamos llamo voy vamos he hemos fui
    je j nous mon ma mes notre nos io noi ho abbiamo sono siamo mio mia miei nostro nostra
    eu nós tenho temos sou estou estamos moro meu minha meus minhas nosso nossa
    ik wij mijn onze""".split()
)
# Words that can come and go without changing what a statement says.
FILLERS = frozenset(
    """a an the and so just really very quite well oh yes also too again still actually anyway
    der die das ein eine einen und auch so ja sehr wirklich einfach doch mal nochmal übrigens
    el la los las un una y también muy pues sí realmente otra vez
    le les une et aussi très vraiment bien""".split()
)
COMMON_BITS = 10.0  # what the words of small talk carry; only bits above this inform
RAREST = 1e-8  # the frequency given to a word that no list holds


@cache
def frequencies(language: str) -> dict[str, float]:
    """The share of running text that each word takes. Raise LookupError for an unknown language."""
    from wordfreq import get_frequency_dict

    return get_frequency_dict(language, wordlist="best")


def words(text: str) -> list[str]:
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    return [word.lower().replace("’", "'") for word in WORD.findall(text)]


def negates(word: str) -> bool:
    """Whether a lowercased word turns what is said around."""
    return word in NEGATIONS or word.endswith("n't")


class WordModel:
    """A unigram model per language. Text is read in the language that makes it most probable."""

    def __init__(self, languages: Sequence[str] = LANGUAGES):
        self.languages = tuple(languages)

    def language_of(self, tokens: Sequence[str]) -> str:
        """The language of lowercased words; ties go to the one named first."""
        if len(self.languages) == 1:
            return self.languages[0]
        known = map(_all_bits, tokens, repeat(self.languages))
        totals: list[float] = list(map(sum, zip(*known, strict=True))) or [0.0]
        return self.languages[totals.index(min(totals))]

    def bits(self, word: str, language: str) -> float:
        """Self-information -log2 P(word) of a lowercased word. At most 26.6."""
        return _bits(word, language)


def _bits(word: str, language: str) -> float:
    found = frequencies(language)
    return -math.log2(max(found.get(word, 0) or found.get(word.split("'")[0], 0), RAREST))


@lru_cache(maxsize=1 << 16)
def _all_bits(word: str, languages: tuple[str, ...]) -> tuple[float, ...]:
    """Of one word in each language. Kept: whole vocabularies are asked for, user by user."""
    return tuple(_bits(word, language) for language in languages)
