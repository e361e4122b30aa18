"""The table, its tests and its document agree."""

from __future__ import annotations

from tests.faults import table


def test_every_row_is_proven_by_a_test_and_every_test_proves_a_row() -> None:
    table.load_tests()
    assert set(table.PROVEN) == set(table.rows())


def test_the_document_is_made_from_the_table() -> None:
    assert table.DOCUMENT.read_text(encoding="utf-8") == table.document(), "run: python -m tests.faults.table"


def test_every_row_says_what_where_and_what_is_kept() -> None:
    for fault in table.rows().values():
        assert fault.what, fault.name
        assert fault.message, fault.name
        assert fault.kept, fault.name
        assert fault.verdict in {table.REFUSED, "NOT PROVEN", "FAIL", "PASS"}, fault.name
        assert (fault.verdict == table.REFUSED) == (fault.status == 4), fault.name


def test_there_are_many() -> None:
    assert len(table.rows()) >= 60
