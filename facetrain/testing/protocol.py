"""The contract of a protocol, checked on random embeddings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.protocols.base import Measured, Protocol
from facetrain.testing.expect import expect, name_of

DIM = 16


def check_protocol(make_protocol: Callable[[], Any]) -> None:
    """Hold a protocol to the contract of `facetrain.evaluate.protocols.base.Protocol`.

    ``make_protocol`` makes one on a data set that is there, and is called without arguments. No photograph is opened.
    Raises AssertionError, which says what went wrong.
    """
    check = _ProtocolCheck(make_protocol)
    check.says_what_it_is()
    check.measures_what_it_says()
    check.embeddings_alone_decide()
    check.faces_that_were_not_found()


class _ProtocolCheck:
    def __init__(self, make_protocol: Callable[[], Any]) -> None:
        self.name, self.make = name_of(make_protocol), make_protocol
        self.protocol: Protocol = make_protocol()
        expect(
            isinstance(self.protocol, Protocol),
            f"{self.name} makes a {type(self.protocol).__name__}, no Protocol",
        )
        self.count = len(self.protocol.photographs)

    def embeddings(self, seed: int) -> NDArray[np.float32]:
        drawn = np.random.default_rng(seed).standard_normal((self.count, DIM))
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    def measure(self, embeddings: NDArray[np.float32], found: NDArray[np.bool_]) -> Measured:
        try:
            return self.protocol.measure(embeddings, found)
        except Exception as error:
            raise AssertionError(
                f"{self.name} on random embeddings: {type(error).__name__}: {error}"
            ) from error

    def says_what_it_is(self) -> None:
        figures = self.protocol.figures
        expect(len(figures) > 0, f"{self.name} has no figures")
        for name in figures:
            expect(
                re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", name) is not None,
                f"{self.name}: a figure is called {name!r}: it becomes a column, choose a name like 'tar_at_far_0.001'",
            )
        photographs = self.protocol.photographs
        there = [path for path in photographs.paths if path]
        expect(
            len(set(there)) == len(there), f"{self.name}: a photograph is named twice: each is embedded once"
        )
        landmarks = photographs.landmarks
        expect(
            landmarks is None or landmarks.shape == (self.count, 5, 2),
            f"{self.name}: landmarks must be [{self.count}, 5, 2], not {None if landmarks is None else landmarks.shape}",
        )
        self.is_plain("facts", self.protocol.facts)

    def is_plain(self, what: str, values: Any) -> None:
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{self.name}: {what} cannot be written as JSON: {error}") from error

    def measures_what_it_says(self) -> None:
        measured = self.measure(self.embeddings(0), np.ones(self.count, bool))
        expect(
            isinstance(measured, Measured), f"{self.name} measures a {type(measured).__name__}, no Measured"
        )
        expect(
            set(measured.values) == set(self.protocol.figures),
            f"{self.name}: it measures {sorted(measured.values)}, but has the figures {sorted(self.protocol.figures)}",
        )
        for name, value in measured.values.items():
            expect(
                value is None or (isinstance(value, float) and math.isfinite(value)),
                f"{self.name}: {name} is {value!r}, not a finite float or None",
            )
        for label, number in measured.counts.items():
            expect(isinstance(number, int | str), f"{self.name}: the count '{label}' is {number!r}")
        self.is_plain("details", measured.details)
        trials = measured.trials
        if trials is not None:
            columns = (trials.scores, trials.same, trials.first, trials.second, trials.groups, trials.shown)
            lengths = {len(column) for column in columns if column is not None}
            expect(len(lengths) == 1, f"{self.name}: its trials are of different lengths: {sorted(lengths)}")
            for rows in (trials.first, trials.second):
                expect(
                    rows is None or bool(((rows >= 0) & (rows < self.count)).all()),
                    f"{self.name}: a trial is of a photograph that it does not have",
                )

    def embeddings_alone_decide(self) -> None:
        embeddings, found = self.embeddings(1), np.ones(self.count, bool)
        before = embeddings.copy()
        first = dict(self.measure(embeddings, found).values)
        expect(np.array_equal(embeddings, before), f"{self.name} changes embeddings in place")
        self.measure(self.embeddings(2), found)
        again = dict(self.measure(embeddings, found).values)
        expect(first == again, f"{self.name}: the same embeddings give {first}, and the next time {again}")
        self.protocol = self.make()
        afresh = dict(self.measure(embeddings, found).values)
        expect(first == afresh, f"{self.name}: made again it gives {afresh} for what gave {first}")

    def faces_that_were_not_found(self) -> None:
        if not self.count:
            return
        embeddings, found = self.embeddings(3), np.arange(self.count) % 3 != 1
        embeddings[~found] = 0
        for name, value in self.measure(embeddings, found).values.items():
            expect(
                value is None or math.isfinite(value),
                f"{self.name}: {name} is {value!r} where no face was found in some photographs",
            )
