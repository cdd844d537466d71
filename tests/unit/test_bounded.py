"""BoundedTable: never more entries than its limit."""

from dpmesh.bounded import BoundedTable


def test_a_full_table_is_emptied_before_the_next_entry():
    table = BoundedTable(3)
    for number in range(3):
        table[number] = str(number)
    assert table == {0: "0", 1: "1", 2: "2"}
    table[3] = "3"
    assert table == {3: "3"}


def test_a_table_never_holds_more_than_its_limit():
    table = BoundedTable(5)
    for number in range(1000):
        table[number % 17] = number
        assert table[number % 17] == number
        assert len(table) <= 5


def test_what_is_missing_can_be_made_by_a_subclass():
    class Squares(BoundedTable):
        def __missing__(self, key):
            value = self[key] = key * key
            return value

    table = Squares(2)
    assert [table[number] for number in (1, 2, 3, 3)] == [1, 4, 9, 9]
    assert table == {3: 9}
