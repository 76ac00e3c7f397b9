"""Words by which glossaries are recognised, in several languages: headings of tables, and words that are not terms."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

HEADING = 40  # characters; a longer text is not a heading
NOTE = re.compile(
    r"\[\s*(?:\d{1,3}|(?:note|nb|n|a|Anm\.|注|註|주) ?\d{1,3}|edit|citation needed|clarification needed|by whom\?"
    r"|when\?|who\?|편집|출처 필요|编辑|編輯|編集|要出典|来源请求|來源請求|Bearbeiten|modifier|editar|réf\. nécessaire"
    r"|cita requerida)\s*\]",
    re.I,
)
NO_TERM = re.compile(
    r"(?:notes?|examples?|e\.g|see|see also|sources?|warning|tip|abstract|figure|table|hinweis|beispiel|siehe|quelle"
    r"|authors?|written by|published|posted|updated|last (?:updated|modified|reviewed)|(?:published|posted|updated) on"
    r"|(?:opening|office|business) hours|copyright|tags|isbn|doi|home|homepage|autor|autorin|auteur|öffnungszeiten"
    r"|horaires|horario|작성자|저자|글쓴이|등록일|작성일|게시일|수정일|조회수|영업시간|담당자|홈|作者|发布时间|发布日期"
    r"|更新时间|发布者|责任编辑|浏览次数|联系人|首页|營業時間|营业时间|著者|投稿日|更新日|公開日|営業時間"
    r"|remarque|exemple|voir|nota|ejemplo|véase|fuente|주의|참고|예|예시|출처|注意|注|例|参考|参见|來源|来源|出典)",
    re.I,
)
REFERENCE_ONLY = re.compile(r"(?:see|see also|siehe|voir|véase|참조|参见|參見|見よ|→|⇒)\s.{0,80}$", re.I)
# Headings of columns, the surest first: a table with `term` and `title` has its terms under `term`.
TERM_HEADS = (
    "term terms headword keyword anchor 용어 용어명 표제어 术语 術語 用語 词条 詞條 begriff fachbegriff terme término "
    "termo termine термин",
    "word words query question expression phrase acronym acronyms abbreviation abbreviations abbr abbr. concept "
    "ausdruck abkürzung wort mot sigle "
    "abréviation palabra sigla abreviatura parola слово 단어 낱말 질문 약어 약자 词 词语 名词 缩写 詞 詞語 詞彙 名詞 "
    "縮寫 問題 问题 言葉 略語 単語",
    "title entry name names 이름 명칭 名称 名稱",
)
DEFINITION_HEADS = (
    "definition definitions positive pos pos_doc meaning meanings 정의 뜻 의미 뜻풀이 풀이 定义 释义 含义 定義 釋義 "
    "含義 意思 意味 bedeutung définition signification definición significado definição definizione significato "
    "определение значение",
    "explanation erklärung erläuterung explication answer 답변 解释 解釋 答案",
    "description beschreibung descripción descrição описание text content 설명 내용 说明 說明 説明 内容",
)
_OTHER = set("id ids no nr number count source sources url link code type date author version language lang".split())
_CJK = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]{2,}")
WEAK = 2  # rank of words that are also headings of other tables


def rank(heading: str, words: Sequence[str]) -> int | None:
    """How certain it is that a heading names a column: 0 is the most certain; None: it does not name it.

    A heading that is one of the words is surer than a heading that only contains one.

    >>> [rank(text, TERM_HEADS) for text in ("Term", "name", "Term (English)", "中文名称", "term_id", "year")]
    [0, 2, 3, 5, None, None]
    """
    text = " ".join(unicodedata.normalize("NFKC", heading).casefold().split()).strip(" :")
    parts = set(re.findall(r"[^\W_]+", text))
    for number, line in enumerate(words):
        if text in line.split():
            return number
    if len(text) < HEADING and not parts & _OTHER:
        for number, line in enumerate(words, len(words)):
            if any(word in parts or (_CJK.fullmatch(word) and word in text) for word in line.split()):
                return number
    return None


def columns_of(headings: Sequence[str]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Places of the column of terms and of the column of definitions, and how sure each is; None without both.

    The surest column is taken, and the first of equally sure ones.

    >>> columns_of(["title", "term", "definition"]), columns_of(["용어 설명", "용어명"]), columns_of(["year", "winner"])
    (((1, 2), (0, 0)), ((1, 0), (0, 5)), None)
    """
    meanings = [(r, place) for place, text in enumerate(headings) if (r := rank(text, DEFINITION_HEADS)) is not None]
    taken = {place for _, place in meanings}  # `용어 설명` holds both words: it is the column of definitions
    terms = [
        (r, place)
        for place, text in enumerate(headings)
        if (r := rank(text, TERM_HEADS)) is not None and place not in taken
    ]
    if not terms or not meanings:
        return None
    (sure, term), (certain, meaning) = min(terms), min(meanings)
    return (term, meaning), (sure, certain)
