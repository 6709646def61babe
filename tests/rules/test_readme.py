"""The README says what the code does: its tables are the code's own."""

from __future__ import annotations

import pytest

from tests.rules import readme


def test_every_table_of_the_code_stands_once_in_the_readme() -> None:
    assert sorted(readme.names_in(readme.README.read_text(encoding="utf-8"))) == sorted(readme.TABLES)


def test_rendering_the_readmes_tables_again_would_change_nothing() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.rewritten(text) == text


def test_only_what_stands_between_the_marks_is_rewritten() -> None:
    text = "before\n<!-- table:outcomes -->\nold\n<!-- /table -->\nafter\n<!-- table -->"
    expected = f"before\n<!-- table:outcomes -->\n\n{readme.outcomes_table()}\n<!-- /table -->\nafter\n<!-- table -->"
    assert readme.rewritten(text) == expected


def test_a_mark_for_a_table_that_nobody_renders_is_an_error() -> None:
    with pytest.raises(KeyError, match="prices"):
        readme.rewritten("<!-- table:prices -->\n<!-- /table -->")
