from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from questlm import ops
from questlm.artifact.matrices import _on_grid
from questlm.artifact.read import require_known_ids
from questlm.errors import ArtifactError
from questlm.vocabulary import parse_tokenizer, usual_end_of_text


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 15, 16, 32, 64, 128, 255, 256])
def test_what_packing_gives_is_on_the_grid_and_spare_bits_are_not(levels: int) -> None:
    for length in range(1, 20):
        packed = ops.pack(torch.full((3, length), levels - 1, dtype=torch.uint8), levels)
        assert _on_grid(packed, levels, length)
        spare = length % 5 if levels == 3 else length * (levels - 1).bit_length() % 8
        if spare:
            packed[1, -1] = 255
            assert not _on_grid(packed, levels, length)


def test_five_ternary_codes_make_at_most_242() -> None:
    packed = torch.tensor([[242, 0], [0, 242]], dtype=torch.uint8)
    assert _on_grid(packed, 3, 10)
    packed[0, 0] = 243
    assert not _on_grid(packed, 3, 10)


@pytest.mark.parametrize("levels", [5, 15, 255])
def test_a_code_beyond_an_odd_grid_is_found(levels: int) -> None:
    codes = torch.zeros(2, 9, dtype=torch.uint8)
    codes[1, 4] = levels
    assert not _on_grid(ops.pack(codes, levels + 1), levels, 9)


def test_a_tokenizer_neither_cuts_nor_pads(tokenizer_json: str) -> None:
    cutting = Tokenizer.from_str(tokenizer_json)
    cutting.enable_truncation(4)
    cutting.enable_padding(length=12)
    whole = parse_tokenizer(cutting.to_str(), "it", ArtifactError)
    assert len(whole.encode("abcdefgh").ids) == 8
    require_known_ids(whole, 257)
    with pytest.raises(ArtifactError, match="has the id 256"):
        require_known_ids(whole, 256)


def test_the_end_of_text_is_found_by_its_usual_names(tokenizer_json: str) -> None:
    assert usual_end_of_text(Tokenizer.from_str(tokenizer_json)) == 0
    assert usual_end_of_text(Tokenizer.from_str(tokenizer_json.replace("<|endoftext|>", "</s>"))) == 0
    assert usual_end_of_text(Tokenizer.from_str(tokenizer_json.replace("<|endoftext|>", "stop"))) is None
