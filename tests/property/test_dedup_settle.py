"""What a commit takes out of a group by its dedup ids, beside a model that goes by record."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from wald.core import body as bodies
from wald.core import dedup, frame
from wald.core.body import Body, Text
from wald.core.commit import Contribution, Group, RunBuilder
from wald.core.events import Duplicate
from wald.core.frame import Section
from wald.core.ids import DedupPolicy, IdTable, StreamIds
from wald.core.rules import StreamRules
from wald.core.state import Run

STREAM, FIRST_LSN = 1, 1_000
RULES = StreamRules(compares_ids=True)
IDS = st.one_of(st.none(), st.sampled_from(["a", "b", "c", b"a", "d", "e", "f"]))
RECORD = st.tuples(IDS, st.booleans())  # the second: it is refused
REQUEST = st.lists(RECORD, max_size=6)
SECTIONS = st.lists(st.lists(REQUEST, min_size=1, max_size=3), min_size=1, max_size=3)
KNOWN = st.dictionaries(st.sampled_from(["a", "b", "c", b"a"]), st.integers(1, 900), max_size=3)

Records = Sequence[tuple[Text | None, bool]]


def body_of(records: Records) -> bytes:
    values: list[object] = ["wrong" if bad else b"%d" % at for at, (_, bad) in enumerate(records)]
    ids = [each for each, _ in records]
    return bodies.encode(Body(0, values, None, None, ids))  # type: ignore[arg-type]


def contribution(sections: Sequence[Sequence[Records]]) -> Contribution[int]:
    built, identified, sequence = [], {}, 1
    for at, requests in enumerate(sections):
        run = RunBuilder(STREAM, sequence, rules=RULES)
        for records in requests:
            run.take_one(body_of(records), lag=1)
        identified[at] = run.identified
        built.append(run.section(7))
        sequence = run.next_sequence
    return Contribution(0, built, [], 1, sequence - 1, identified)


def table_of(known: dict[Text, int]) -> tuple[IdTable, StreamIds]:
    table = IdTable({"s": DedupPolicy(3600.0)})
    ids = table.of(STREAM, "s")
    assert ids is not None
    ordered = sorted(known.items(), key=lambda pair: pair[1])
    for dedup_id, lsn in ordered:
        ids.add([lsn], [dedup_id], 1)
    return table, ids


class ByRecord:
    """The model: what is known, and the next LSN."""

    def __init__(self, known: dict[Text, int]) -> None:
        self.seen = dict(known)
        self.lsn = FIRST_LSN

    def take(self, records: Records) -> tuple[list[bytes], tuple[Duplicate, ...]]:
        """Return what of a request is stored, and what is duplicate."""
        stored, duplicates = [], []
        for place, (dedup_id, bad) in enumerate(records):
            if bad:
                continue
            earlier = None if dedup_id is None else self.seen.get(dedup_id)
            if earlier is not None:
                duplicates.append(Duplicate(place, earlier))
                continue
            if dedup_id is not None:
                self.seen[dedup_id] = self.lsn
            stored.append(b"%d" % place)
            self.lsn += 1
        return stored, tuple(duplicates)


def check_section(section: Section, requests: Sequence[Records], model: ByRecord) -> set[int]:
    """Compare a settled section with the model; return the sequences with duplicates."""
    run = Run(section.first_sequence, STREAM, model.lsn, section.requests, section.refusals)
    at, found = 0, set()
    entries = zip(requests, frame.request_entries(section), strict=True)
    for sequence, (records, entry) in enumerate(entries, section.first_sequence):
        stored, duplicates = model.take(records)
        data = section.bodies[at : at + entry.body_length]
        at += entry.body_length
        assert (bodies.decode(data).values, entry.stored) == (stored, len(stored))
        assert dedup.lacks_records(run, sequence) == bool(duplicates)
        if duplicates:
            found.add(sequence)
    assert at == len(section.bodies)
    return found


@given(st.lists(SECTIONS, min_size=1, max_size=3), KNOWN)
def test_a_group_is_settled_as_record_by_record(
    all_sections: list[list[list[Records]]], known: dict[Text, int]
):
    table, ids = table_of(known)
    mine = [contribution(sections) for sections in all_sections]
    new = Group([], mine).settle(FIRST_LSN, table)
    remembered = {each: lsn for each in known if (lsn := ids.get(each)) is not None}
    model, told = ByRecord(remembered), ByRecord(remembered)
    for each, sections in zip(mine, all_sections, strict=True):
        wrong: set[int] = set()
        for section, requests in zip(each.sections, sections, strict=True):
            wrong |= check_section(section, requests, model)
        expected = [told.take(records)[1] for requests in sections for records in requests]
        assert {one.sequence for one in each.duplicates} == wrong
        assert [one.duplicates for one in each.duplicates] == list(filter(None, expected))
    assert sum(each.records for each in mine) == model.lsn - FIRST_LSN
    fresh = {each: lsn for each, lsn in model.seen.items() if lsn >= FIRST_LSN}
    assert {each: lsn for one in new for each, lsn in zip(one.ids, one.lsns, strict=True)} == fresh
    assert all(list(one.lsns) == sorted(one.lsns) for one in new)


@given(SECTIONS, KNOWN)
def test_what_is_sent_again_is_answered_as_it_was(
    sections: list[list[Records]], known: dict[Text, int]
):
    table, ids = table_of(known)
    one = contribution(sections)
    for new in Group([], [one]).settle(FIRST_LSN, table):
        ids.add(new.lsns, new.ids, 2)
    told = {each.sequence: each.duplicates for each in one.duplicates}
    lsn, sequence = FIRST_LSN, 0
    for section, requests in zip(one.sections, sections, strict=True):
        run = Run(section.first_sequence, STREAM, lsn, section.requests, section.refusals)
        lsn += section.records
        for records in requests:
            sequence += 1
            if dedup.lacks_records(run, sequence):
                again = dedup.answer_again(run, sequence, body_of(records), table)
                assert again == told[sequence]
            else:
                assert sequence not in told
