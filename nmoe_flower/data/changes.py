"""What is different about data that was counted before, in words."""

from collections.abc import Mapping

from nmoe_flower.data.images import ImageData

__all__ = ["counted", "what_changed"]

_NAMED = 5  # classes that are listed


def counted(data: ImageData) -> dict[str, dict[str, int]]:
    """Samples of every class in both splits, by the names of split and class."""
    return {
        name: {cls: int((split.labels == code).sum()) for code, cls in enumerate(data.class_names)}
        for name, split in (("train", data.train), ("test", data.test))
    }


def what_changed(
    then: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]
) -> str:
    """How two counts of the same data differ.

    >>> what_changed({"train": {"cat": 60, "dog": 9}}, {"train": {"cat": 56, "dog": 9}})
    "train had 69 samples and has 65 (class 'cat': 60 then, 56 now)"
    >>> what_changed({"train": {"cat": 60}}, {"train": {"cat": 60}})
    'as many samples of every class as before, but not the same ones'
    """
    found = []
    for split, before in then.items():
        after = now.get(split, {})
        classes = [
            f"class {cls!r}: {before.get(cls, 0)} then, {after.get(cls, 0)} now"
            for cls in sorted({*before, *after})
            if before.get(cls, 0) != after.get(cls, 0)
        ]
        if classes:
            more = len(classes) - _NAMED
            listed = "; ".join(classes[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
            found.append(
                f"{split} had {sum(before.values())} samples and has {sum(after.values())} "
                f"({listed})"
            )
    return ", ".join(found) or "as many samples of every class as before, but not the same ones"
