"""The accountant of noise: counts every noisy sum on disk before it can leave the server, repeated rounds included."""

from __future__ import annotations

from pathlib import Path

from lissome.core.errors import ArtifactError
from lissome.core.files import read_json, write_json
from lissome.ops.privacy import epsilon

_COUNT = "releases"


class Releases:
    """What all noisy sums of one federation promise together.

    A round whose record is lost with a killed server is repeated with other noise: its sum may be out, so it counts
    twice. A sum that was counted and did not leave any more counts all the same.

    Args:
        file: Where the count is kept, outside of the checkpoints, which a repeated round knows nothing of.
        noise: z, of every sum.
        delta: δ.
    """

    def __init__(self, file: Path, noise: float, delta: float) -> None:
        self._file, self._noise, self._delta = file, noise, delta

    def one_more(self, round: int) -> float:
        """Count one more and return ε of all so far.

        Args:
            round: Where the file is absent, the rounds before this one count as one release each.

        Raises:
            ArtifactError: When the file is damaged: nobody knows then what was released.
        """
        known = read_json(self._file) if self._file.exists() else {_COUNT: round - 1}
        before = known.get(_COUNT) if isinstance(known, dict) else None
        if type(before) is not int or before < 0:
            raise ArtifactError(f"{self._file} does not say how often noise was released; begin in another folder.")
        write_json(self._file, {_COUNT: before + 1})
        return epsilon(self._noise, before + 1, self._delta)
