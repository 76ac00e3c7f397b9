"""Korean particles. Their form depends on the sound before them: 저항은, 전류는; 칩으로, 코일로.

The sound is that of the last letter when it is read aloud. Latin capitals are read by their names (LED: 엘이디).
Small Latin letters are read as an English word; its last sound is guessed from its spelling (coil: 코일, chip: 칩).
Digits are read one by one (4: 사).
"""

from __future__ import annotations

import re
import unicodedata

# Form after a consonant, form after a vowel.
PARTICLES = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "과": ("과", "와"),
    "으로": ("으로", "로"),
    "이란": ("이란", "란"),
    "이라": ("이라", "라"),
    "이라는": ("이라는", "라는"),
    "이라고": ("이라고", "라고"),
    "이나": ("이나", "나"),
    "이며": ("이며", "며"),
    "아": ("아", "야"),
}
NAMES = {form: forms for forms in PARTICLES.values() for form in forms}
# The last sound of Latin letters and of digits: "" a vowel, "l" the consonant ㄹ, "c" another consonant.
LETTERS = {"l": "l", "m": "c", "n": "c", "r": "l"}
DIGITS = {"0": "c", "1": "l", "3": "c", "6": "c", "7": "l", "8": "l"}
SPOKEN = dict.fromkeys("bit kit set lidar radar sonar laser maser or nor xor mp3 mp4".split(), "")  # 비트, 라이다, 노어
SPOKEN |= dict.fromkeys("asic web app lab tab not".split(), "c")  # 에이식, 웹
SIGNS = {"℃": "", "#": "c", "%": "", "Ω": "c", "\u2126": "c", "μ": "", "°": ""}


def final_sound(text: str) -> str:
    """The last sound of a text when it is read in Korean: empty for a vowel, `l` for ㄹ, `c` for another consonant.

    >>> [final_sound(text) for text in ("저항", "전류", "코일", "LED", "USB 3", "coil", "LCD(액정)")]
    ['c', '', 'l', '', 'c', 'l', '']
    """
    text = re.sub(r"\s*[(（\[][^()（）\[\]]*[)）\]]\s*$", "", text) or text  # what stands in brackets is not read
    text = unicodedata.normalize("NFC", text).rstrip()
    while text and not text[-1].isalnum() and text[-1] not in SIGNS:
        text = text[:-1]
    if not text:
        return ""
    last = text[-1]
    if last in SIGNS:
        return SIGNS[last]
    if "가" <= last <= "힣":
        final = (ord(last) - ord("가")) % 28
        return "" if final == 0 else "l" if final == 8 else "c"
    spoken = re.findall(r"[a-z]*[0-9]*$", text.lower())[0]
    if spoken in SPOKEN:
        return SPOKEN[spoken]
    if last.isdecimal():  # 10, 100 and 1000 (십, 백, 천) end in a consonant, and so does 0 (영)
        return DIGITS.get(unicodedata.normalize("NFKC", last), "")
    word = re.findall(r"[A-Za-z]*$", text)[0]
    return _english(word) if word else ""


def _english(word: str) -> str:
    """The last sound of a word in Latin letters; one with a capital after its first letter is spelt out (LED, IoT)."""
    if word.lower().endswith("fet"):  # 모스펫
        return "c"
    if len(word) == 1 or not word[1:].islower():
        return LETTERS.get(word[-1].lower(), "")
    word = word.lower()
    if re.search(r"(l|le)$", word):
        return "l"
    if re.search(r"([mn]e?|ng)$", word):
        return "c"
    # A short vowel and a stop: chip 칩, socket 소켓, block 블록. After anything else a vowel is added: note 노트.
    short = re.search(r"(^|[^aeiou]|qu)[aeiou](ck|[ptkc])$|(cuit|ook)$", word)
    return "c" if short else ""


def with_particle(word: str, particle: str) -> str:
    """A word with the particle in the form that fits.

    Args:
        word: any text.
        particle: either form of the particle.

    >>> with_particle("저항", "는"), with_particle("코일", "으로"), with_particle("LED", "은")
    ('저항은', '코일로', 'LED는')
    """
    after_consonant, after_vowel = NAMES[particle]
    sound = final_sound(word)
    closed = sound == "c" or (sound == "l" and particle not in ("으로", "로"))
    return word + (after_consonant if closed else after_vowel)
