"""Search among three directions, which can be seen by eye, and sets on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.vision_fixtures import colour_bundle
from vision_zoo.neighbours import (
    EmbeddingSet,
    EmbeddingSets,
    SetLimits,
    SetsFullError,
    UnknownSetError,
    read,
    write,
)


def made(sets: EmbeddingSets, name: str = "colours") -> EmbeddingSet:
    """Three vectors of two float32, three ids of a letter and the labels: 24 + 3 + 12 bytes."""
    with sets.building(name, colour_bundle()) as builder:
        builder.add("a", "red", torch.tensor([5.0, 0.0]))
        builder.add("b", "green", torch.tensor([0.0, 0.1]))
        builder.add("c", "blue", torch.tensor([-3.0, 0.0]))
        return builder.build()


def test_the_nearest_by_angle_come_first_whatever_their_length() -> None:
    found = made(EmbeddingSets()).search(torch.tensor([30.0, 40.0]), 9)
    assert [(each.id, each.label) for each in found] == [("b", "green"), ("a", "red"), ("c", "blue")]
    assert [each.similarity for each in found] == pytest.approx([0.8, 0.6, -0.6])
    assert [each.id for each in made(EmbeddingSets()).search(torch.tensor([-1.0, 0.0]), 1)] == ["c"]


def test_what_does_not_fit_is_named() -> None:
    sets = EmbeddingSets(limits=SetLimits(text=5))
    with pytest.raises(ValueError, match="set name 'A' must be"), sets.building("A", colour_bundle()):
        pass
    with sets.building("a", colour_bundle()) as builder:
        with pytest.raises(ValueError, match="no members"):
            builder.build()
        builder.add("", "green", torch.ones(2))
        for wrong, text in (
            (torch.ones(3), "has 3 values, the first had 2"),
            (torch.zeros(2), "zeros has no direction"),
            (torch.tensor([1.0, float("nan")]), "finite"),
        ):
            with pytest.raises(ValueError, match=text):
                builder.add("", "", wrong)
        with pytest.raises(ValueError, match="label of 6 characters; the limit is 5"):
            builder.add("", "purple", torch.ones(2))
        with pytest.raises(ValueError, match="id of 6 characters; the limit is 5"):
            builder.add("123456", "", torch.ones(2))
        found = builder.build()
    assert len(found) == len(builder) == 1 and found.size == builder.size == 13
    with pytest.raises(ValueError, match="k 0 must be at least 1"):
        found.search(torch.ones(2), 0)
    with pytest.raises(ValueError, match="the query has 3 values; set 'a' has 2"):
        found.search(torch.ones(3))


def test_the_limit_is_that_of_all_sets_and_a_set_may_replace_itself() -> None:
    sets = EmbeddingSets(limits=SetLimits(size=39))
    sets.add(made(sets))
    sets.add(made(sets))
    with sets.building("other", colour_bundle()) as builder:
        with pytest.raises(SetsFullError, match=r"47 bytes in all sets of embeddings; the limit is 39: delete a set"):
            builder.add("", "", torch.ones(2))
    with pytest.raises(SetsFullError, match="78 bytes in all sets"):
        sets.add(made(EmbeddingSets(), "other"))
    sets.delete("colours")
    sets.add(made(sets, "other"))
    with pytest.raises(UnknownSetError, match=r"set 'colours' is unknown; choose from \['other'\]"):
        sets.find("colours")


def test_sets_that_are_being_built_count_with_the_others() -> None:
    sets = EmbeddingSets(limits=SetLimits(sets=2, members=4))
    with sets.building("first", colour_bundle()) as first:
        first.add("", "", torch.ones(2))
        sets.add(made(sets, "second"))
        with pytest.raises(SetsFullError, match="5 members in all sets of embeddings; the limit is 4"):
            first.add("", "", torch.ones(2))
        with pytest.raises(SetsFullError, match="3 sets of embeddings; the limit is 2"):
            with sets.building("third", colour_bundle()):
                pass
    with sets.building("third", colour_bundle()) as third:  # the first was given up, so its room is free
        third.add("", "", torch.ones(2))


def test_a_folder_keeps_the_sets(tmp_path: Path) -> None:
    sets = EmbeddingSets(tmp_path)
    original = made(sets)
    sets.add(original)
    kept = EmbeddingSets(tmp_path).find("colours")
    assert torch.equal(kept.vectors, original.vectors)
    assert (kept.ids, kept.labels, kept.model, kept.version) == (("a", "b", "c"), original.labels, "colours", "3")
    sets.delete("colours")
    assert list(EmbeddingSets(tmp_path)) == [] and list(tmp_path.iterdir()) == []
    file = write(tmp_path, original)
    file.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"colours\.safetensors is no set of embeddings"):
        read(file)
