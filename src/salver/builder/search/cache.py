"""What was made and measured, kept by content: the same question is never asked twice on one host."""

from __future__ import annotations

from pathlib import Path

import msgspec

from salver.builder.search.trial import TrialResult, read_result, write_result


class TrialCache:
    """Results of trials, one folder each, named by everything the result depends on (`cache_name`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "trials"
        self.models_dir = folder / "models"
        self.scores_dir = folder / "scores"

    def folder(self, key: str) -> Path:
        """Where a trial of that key works and leaves its files."""
        return self._folder / key

    def get(self, key: str) -> TrialResult | None:
        """The stored result, or None; a damaged or foreign entry counts as none."""
        path = self.folder(key) / "done.json"
        try:
            result = read_result(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        missing = result.model is not None and not all(b.path.is_file() for b in result.model.blobs)
        return None if missing else result

    def put(self, key: str, result: TrialResult) -> None:
        """Store a result that is worth keeping: one that was measured, or that says a pass does not apply. Failures are
        tried again next time, since a hang or a lack of memory may be the host's."""
        if result.outcome == "failed":
            return
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        write_result(result, folder / "done.json")
