"""What is sent again when files were cut, replaced and removed since (T4, Z7)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hyperha.core.events import SessionLost
from hyperha.replication.operations import ROOT_ID, FileId
from tests.support.engine_pair import Guest, wait_for
from tests.support.wired import Wired

pytestmark = pytest.mark.root

_SIZES = (1, 100, 4096, 70_000, 300_000)
_PLACES = (0, 1, 4096, 1_048_000)


class Rough:
    """A guest that mostly undoes what it has just done."""

    def __init__(self, guest: Guest, chance: random.Random) -> None:
        self.guest = guest
        self.chance = chance
        self.files: dict[bytes, FileId] = {}
        self.made = 0

    def step(self) -> None:
        chance, guest, what = self.chance, self.guest, self.chance.random()
        guest.more = chance.random() < 0.5
        if what < 0.2 or not self.files:
            self.made += 1
            name = b"f%d" % self.made
            self.files[name] = guest.create(ROOT_ID, name)
            return
        name = chance.choice(list(self.files))
        file = self.files[name]
        if what < 0.65:
            offset = (chance.randrange(3) << 20) | chance.choice(_PLACES)
            data = chance.randbytes(chance.choice(_SIZES))
            guest.write(file, offset, data, barrier=chance.random() < 0.1)
        elif what < 0.78:
            guest.truncate(file, chance.choice((0, 1, 5000, 2 << 20)))
        elif what < 0.86:
            guest.remove(ROOT_ID, name)
            del self.files[name]
        elif what < 0.94:
            onto = chance.choice(list(self.files))
            if onto != name:
                guest.rename(ROOT_ID, name, ROOT_ID, onto)
                self.files[onto] = self.files.pop(name)
        else:
            guest.flush(file)

    def pause(self) -> None:
        self.guest.more = False
        self.guest.side.primary.send_kept()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_files_that_were_cut_replaced_and_removed_before_the_break(
    tmp_path: Path, seed: int, tls: bool
) -> None:
    """The copies are equal, each operation was answered, and nobody was given up meanwhile."""
    pair, chance = Wired(tmp_path, tls=tls), random.Random(seed)
    try:
        pair.in_sync()
        guest = Guest(pair.a)
        rough = Rough(guest, chance)
        for _ in range(10):
            for cable in pair.cables:
                cable.silent()
            for _ in range(chance.randrange(5, 40)):
                rough.step()
            rough.pause()
            arrives = chance.random() < 0.5
            for cable in pair.cables:
                if arrives:
                    cable.silent(False)
                cable.reset()
                cable.silent(False)
            if chance.random() < 0.7:
                wait_for(lambda: not pair.a.primary.parked_count(), 5)
        wait_for(lambda: not pair.a.primary.parked_count(), 5)
        assert not guest.errors
        pair.check_equal()
        assert not pair.a.has(SessionLost)
        assert not pair.b.has(SessionLost)
    finally:
        pair.close()
