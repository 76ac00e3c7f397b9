"""Words by which glossaries are known, in several languages: headings of their tables, and what is no term at all."""

from __future__ import annotations

import re

NOTE = re.compile(
    r"\[\s*(?:\d{1,3}|(?:note|nb|n|a|Anm\.|注|註|주) ?\d{1,3}|edit|citation needed|clarification needed|by whom\?"
    r"|when\?|who\?|편집|출처 필요|编辑|編輯|編集|要出典|来源请求|來源請求|Bearbeiten|modifier|editar|réf\. nécessaire"
    r"|cita requerida)\s*\]",
    re.I,
)
NO_TERM = re.compile(
    r"(?:notes?|examples?|e\.g|see|see also|sources?|warning|tip|abstract|figure|table|hinweis|beispiel|siehe|quelle"
    r"|remarque|exemple|voir|nota|ejemplo|véase|fuente|주의|참고|예|예시|출처|注意|注|例|参考|参见|來源|来源|出典)",
    re.I,
)
REFERENCE_ONLY = re.compile(r"(?:see|see also|siehe|voir|véase|참조|参见|參見|見よ|→|⇒)\s.{0,80}$", re.I)
TERM_HEADS = set(
    "term terms word expression phrase acronym abbreviation concept begriff fachbegriff ausdruck abkürzung wort "
    "terme mot sigle abréviation término palabra sigla abreviatura termo termine parola термин слово "
    "용어 낱말 단어 약어 약자 术语 術語 词语 詞語 名词 名詞 缩写 縮寫 用語 言葉 略語".split()
)
DEFINITION_HEADS = set(
    "definition definitions meaning description explanation bedeutung erklärung beschreibung erläuterung "
    "définition signification explication definición significado descripción definição descrição definizione "
    "significato описание определение значение 정의 설명 뜻 의미 풀이 "
    "定义 定義 释义 釋義 解释 解釋 说明 說明 説明 含义 含義 意思 意味".split()
)
