"""Members of groups are counted as they end: each once, whoever counts it at the same time."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import partial
from threading import Barrier
from typing import Any

from taskbridge.contract.stores.place import TIMEOUT_S, Place, expect, soon
from taskbridge.contract.stores.table import check
from taskbridge.stores.backend import ABSENT, COUNTED, Backend, Commit, Counted, Entry, Listed, Tallied, Tally, Write

_KEY = "flow:f:group:0"


def _tally(
    backend: Backend,
    index: int,
    ended: Counted = "done",
    text: str | None = None,
    *,
    seen: str = ABSENT,
    by: str = "",
    **options: Any,
) -> Tallied | None:
    """Count a member, whose record is made by that unless it was seen."""
    given: dict[str, Any] = {"key": _KEY, "total": 300, "entry": Entry("flow\tf", "f", 0.0), "posts": "last", **options}
    write = Write(f"record:{given['key']}/{index}{by}", seen, f"1\n{ended}")
    return backend.tally(write, Tally(index=index, ended=ended, text=text, **given), timeout_s=TIMEOUT_S)


def _counts(backend: Backend, key: str = _KEY) -> tuple[int, ...]:
    """Return how many are done, dead, discarded, cancelled, and sent."""
    [counts] = backend.counts_of([key], timeout_s=TIMEOUT_S)
    return astuple(counts)


def _due(backend: Backend) -> list[tuple[str, str]]:
    return backend.due_entries(most=10, lease_s=60.0, timeout_s=TIMEOUT_S)


@check()
def a_member_is_counted_once(p: Place) -> None:
    """A member is counted with the write of its record or not at all, and once, however often that is tried."""
    one, two = p.store().backend, p.store().backend
    expect(_counts(one), (0, 0, 0, 0, 0), "the counts of a group that nobody knows")
    expect(_tally(one, 7), Tallied(1, is_new=True), "of the first member")
    expect(_tally(two, 7), None, "of the same one, whose record was not there")
    expect(_tally(two, 7, "dead", seen="1"), Tallied(1, is_new=False), "of the same one, whose record was seen")
    expect(_tally(two, 8, "dead", "x"), Tallied(2, is_new=True), "of another one")
    _tally(one, 209, "discarded")
    expect(_tally(one, 299, "cancelled", "y"), Tallied(4, is_new=True), "of the last one")
    expect(_tally(one, 0, key="flow:f:group:1"), Tallied(1, is_new=True), "of another group")
    expect(one.get([f"record:{_KEY}/8"], timeout_s=TIMEOUT_S), ["1\ndead"], "the record of one")
    two.note_sent(_KEY, 250, timeout_s=TIMEOUT_S)
    one.note_sent(_KEY, 200, timeout_s=TIMEOUT_S)
    expect(_counts(two), (1, 1, 1, 1, 250), "the counts after that")
    found = two.counts_of(["flow:g:group:0", "flow:f:group:1", _KEY], timeout_s=TIMEOUT_S)
    expect(
        [(each.ended, each.bad) for each in found], [(0, 0), (1, 0), (4, 3)], "how many ended, and badly, of several"
    )


@check()
def what_is_kept_of_ends_is_read_in_pages(p: Place) -> None:
    """Of each member of a range is told how it has ended, and what is kept of that."""
    one, two = p.store().backend, p.store().backend
    wanted: list[tuple[Counted, str | None] | None] = [None] * 300
    texts = '"é"', "dead\nline", None, "", "{" + "x" * 200 + "}"
    for number, index in enumerate((0, 1, 8, 63, 99, 100, 101, 198, 199, 200, 255, 299)):
        ended, text = COUNTED[number % 4], texts[number % 5]
        _tally(one, index, ended, text)
        wanted[index] = ended, text
    for first, count in ((0, 300), (0, 1), (1, 100), (90, 20), (199, 2), (297, 3), (150, 30)):
        found = two.members(_KEY, first, count, timeout_s=TIMEOUT_S)
        expect(found, wanted[first : first + count], f"{count} members from {first}")
    expect(two.members(_KEY, 295, 10, timeout_s=TIMEOUT_S)[4:], [wanted[299], *[None] * 5], "those beyond the last")
    expect(two.members("flow:g:group:0", 5, 2, timeout_s=TIMEOUT_S), [None, None], "of a group that nobody knows")


@check()
def the_first_that_is_open_is_found(p: Place) -> None:
    """The first member that has not ended is found; none if all have."""
    backend = p.store().backend

    def first(total: int) -> int | None:
        return backend.first_open(_KEY, total, timeout_s=TIMEOUT_S)

    expect(first(3), 0, "of a group that nobody knows")
    _tally(backend, 1, total=17)
    expect(first(17), 0, "if another one has ended")
    for index in (0, 2, 4):
        _tally(backend, index, "dead", total=17)
    expect((first(17), first(3)), (3, None), "if the first three have, of more and of no more")
    for index in range(3, 17):
        if index != 4:
            _tally(backend, index, total=17)
    expect((first(17), first(18)), (None, 17), "if all have, and of one more")


@check()
def a_group_tells_of_its_end(p: Place) -> None:
    """The entry is in the outbox as the last member has ended, or as was asked; one that is due earlier stays."""
    one, two = p.store().backend, p.store().backend
    _tally(one, 0, "dead", total=2)
    expect(_due(two), [], "what is due before the last")
    _tally(two, 1, total=2)
    expect(_due(one), [("flow\tf", "f")], "what is due after it")
    _tally(one, 0, total=3, key="bad", posts="bad", entry=Entry("b", "done"))
    expect(_due(two), [], "what is due after one that is done")
    _tally(one, 1, "discarded", total=3, key="bad", posts="bad", entry=Entry("b", "bad"))
    expect(_due(two), [("b", "bad")], "what is due after one that is not")
    _tally(one, 2, total=3, key="bad", posts="bad", entry=Entry("b", "last"))
    expect(_due(two), [("b", "last")], "what is due after the last of that")
    _tally(one, 0, key="always", posts="always", entry=Entry("a", "first", 0.3))
    _tally(one, 1, key="always", posts="always", entry=Entry("a", "later", 3600.0))
    soon(lambda: _due(two), lambda found: found == [("a", "first")], "what was due earlier")
    _tally(one, 2, key="always", posts="always", entry=Entry("a", "sooner", 0.0))
    expect(_due(two), [("a", "sooner")], "what is due again before its lease is over")


@check()
def a_replay_is_counted_no_more(p: Place) -> None:
    """A commit uncounts members, those that are counted, and only if it is done; then they are counted again."""
    one, two = p.store().backend, p.store().backend

    def uncount(*indexes: int, seen: str) -> list[bool]:
        commit = Commit([Write("state", seen, "1")], uncounts=[(_KEY, index) for index in indexes])
        return two.commit([commit], timeout_s=TIMEOUT_S)

    for number, ended in enumerate(COUNTED):
        _tally(one, number, ended, "x", total=4)
    expect([each[0] for each in _due(two)], ["flow\tf"], "what is due")
    expect(uncount(1, seen="5"), [False], "of a commit that is not done")
    expect(_counts(one), (1, 1, 1, 1, 0), "the counts after that")
    expect(uncount(1, 3, 200, seen="0"), [True], "of one that is")
    expect(_counts(one), (1, 0, 1, 0, 0), "the counts after that")
    expect(one.first_open(_KEY, 4, timeout_s=TIMEOUT_S), 1, "the first that is open")
    members = one.members(_KEY, 0, 4, timeout_s=TIMEOUT_S)
    expect(members, [("done", "x"), None, ("discarded", "x"), None], "the members")
    expect(uncount(1, seen="1"), [True], "of one that is not counted")
    expect(_tally(one, 1, seen="1", total=4), Tallied(3, is_new=True), "of the first again")
    expect(_due(two), [], "what is due before the second")
    expect(_tally(one, 3, "cancelled", seen="1", total=4), Tallied(4, is_new=True), "of the second again")
    expect(_due(two), [("flow\tf", "f")], "what is due after it")
    commits = [Commit([Write("x", ABSENT, "1")]), Commit([Write("y", ABSENT, "1")], uncounts=[(_KEY, 0)])]
    expect(two.commit(commits, timeout_s=TIMEOUT_S), [True, True], "of several")
    expect(_counts(one), (1, 0, 1, 1, 0), "the counts after these")


@check()
def a_group_is_kept_until_it_is_over(p: Place) -> None:
    """A group is forgotten after its time, unless that was taken back; one of its name begins anew then."""
    one, two = p.store().backend, p.store().backend
    keys = ["flow:f:group:0", "flow:f:group:1", "flow:f:group:2"]
    for key in keys:
        _tally(one, 0, "dead", "x", key=key, total=1)
        one.note_sent(key, 1, timeout_s=TIMEOUT_S)
    two.end_groups(keys, kept_s=0.5, timeout_s=TIMEOUT_S)
    one.end_groups([keys[1], "flow:g:group:0"], kept_s=None, timeout_s=TIMEOUT_S)
    two.end_groups(["flow:h:group:0"], kept_s=0.5, timeout_s=TIMEOUT_S)
    _tally(one, 250, "dead", "late", key="flow:h:group:0")  # after that was said
    for key in (keys[0], keys[2], "flow:h:group:0"):
        soon(partial(_counts, two, key), lambda found: not any(found), f"the counts of {key} in the end")
    two.purge(timeout_s=TIMEOUT_S)
    expect(_counts(one, keys[1]), (0, 1, 0, 0, 1), "the counts of the one that is kept")
    expect(one.members(keys[0], 0, 1, timeout_s=TIMEOUT_S), [None], "a member of one that is over")
    expect(one.members("flow:h:group:0", 250, 1, timeout_s=TIMEOUT_S), [None], "a member that came late")
    expect(one.members(keys[1], 0, 1, timeout_s=TIMEOUT_S), [("dead", "x")], "a member of the one that is kept")
    expect(_tally(one, 0, key=keys[0], seen="1", total=1), Tallied(1, is_new=True), "of a member anew")


@check()
def members_are_counted_once_by_many(p: Place) -> None:
    """Of 2,000 members that 8 threads count twice at the same time, each is counted once, and the end is seen."""
    backends, total, barrier = (p.store().backend, p.store().backend), 2000, Barrier(8)

    def run(number: int) -> list[Tallied | None]:
        backend = backends[number % 2]
        barrier.wait()
        indexes = range(number // 2, total, 4)  # so do two, neither of which a record keeps out
        return [_tally(backend, each, COUNTED[each % 4], by=f" {number}", total=total) for each in indexes]

    with ThreadPoolExecutor(8) as pool:
        told = [counts for found in pool.map(run, range(8)) for counts in found if counts is not None]
    expect(Counter(each.is_new for each in told), Counter({True: total, False: total}), "how many were counted")
    expect(_counts(backends[0]), (500, 500, 500, 500, 0), "the counts")
    expect(max(each.ended for each in told if each.is_new), total, "the most that were told as one was counted")
    expect([key for key, _ in _due(backends[1])], ["flow\tf"], "what is due")


@check()
def lists_are_counted(p: Place) -> None:
    """The messages in the list of a state are counted."""
    one, two = p.store().backend, p.store().backend
    one.list_soon([Listed("a", "queued", 1.0), Listed("b", "queued", 2.0), Listed("c", "done", 3.0)])
    names = ["done", "queued", "dead"]
    soon(lambda: two.count_listed(names, timeout_s=TIMEOUT_S), lambda found: found == [1, 2, 0], "how many there are")
    one.list_soon([Listed("b", "done", 4.0, formers=("queued",))])
    soon(lambda: two.count_listed(names, timeout_s=TIMEOUT_S), lambda found: found == [2, 1, 0], "after one has moved")
