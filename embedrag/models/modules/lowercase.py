"""Lowercase texts, for models with `do_lower_case` in their sentence-transformers files (BGE v1.5, early BERT models).

sentence-transformers puts the step before the tokenizer's own normaliser. Here it is done in the same way, so that the
saved tokenizer does it in every program. A tokenizer that already lowercases texts stays as it is.
"""

from __future__ import annotations

from typing import Any

PROBES = (
    "A Straße in ÅNGSTRÖM, Überall",
    "ΑΘΗΝΑ und МОСКВА",
    "Title Case, ALL CAPS, camelCase, iPhone 15 PRO",
    "ĐẠI HỌC",
)


def lowercase_first(tokenizer: Any) -> bool:
    """Let a tokenizer of transformers lowercase each text first.

    Returns:
        Whether it had to be changed.
    """
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    if all(backend.encode(text).ids == backend.encode(text.lower()).ids for text in PROBES):
        return False
    own = backend.normalizer
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own is not None else [])])
    return True
