from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from questlm.artifact.read import require_known_ids
from questlm.errors import ArtifactError
from questlm.vocabulary import parse_tokenizer


def test_a_tokenizer_neither_cuts_nor_pads(tokenizer_json: str) -> None:
    cutting = Tokenizer.from_str(tokenizer_json)
    cutting.enable_truncation(4)
    cutting.enable_padding(length=12)
    whole = parse_tokenizer(cutting.to_str(), "it", ArtifactError)
    assert len(whole.encode("abcdefgh").ids) == 8
    require_known_ids(whole, 257)
    with pytest.raises(ArtifactError, match="has the id 256"):
        require_known_ids(whole, 256)
