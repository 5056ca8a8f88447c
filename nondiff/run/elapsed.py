"""Time in training, that of earlier parts of a resumed run included."""

import time

from nondiff.run.callback import Moment


class Elapsed:
    """A clock for a callback: told each moment it sees, asked at any time, also between two moments."""

    def __init__(self) -> None:
        self._earlier, self._resumed = 0.0, False
        self._seen = 0.0
        self._at: float | None = None

    def begin(self, moment: Moment) -> None:
        if not self._resumed:
            self._earlier = 0.0
        self._resumed = False
        self.at(moment)

    def at(self, moment: Moment) -> float:
        """Seconds at this moment."""
        self._seen, self._at = moment.seconds, time.perf_counter()
        return self._earlier + self._seen

    def end(self, moment: Moment) -> None:
        self.at(moment)
        self._at = None

    def get_state(self) -> float:
        """Seconds now. A run that is killed shortly after each checkpoint must not seem to take no time."""
        since = 0.0 if self._at is None else time.perf_counter() - self._at
        return self._earlier + self._seen + since

    def set_state(self, seconds: float) -> None:
        self._earlier, self._seen, self._at, self._resumed = seconds, 0.0, None, True
