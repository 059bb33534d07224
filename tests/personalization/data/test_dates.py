from datetime import datetime

import pytest

from personalization.data.dates import read_date, written

DAY = datetime(2019, 7, 4)


@pytest.mark.parametrize(
    "raw",
    [
        "2019-07-04",
        "2019-7-4",
        "2019/7/4",
        " 2019-07-04 ",
        "20190704",
        "2019-07-04T00:00:00Z",
        "2019-07-04 02:00:00+02:00",
        "2019-07-04 0:00 UTC",
        "July 4, 2019",
        "4 Jul 2019",
        "Thu, 04 Jul 2019 00:00:00 GMT",
        "Thu Jul 04 00:00:00 +0000 2019",
        "07 4, 2019",
        1562198400,
        1562198400.0,
        "1562198400",
        1562198400000,
        "1562198400000",
        20190704,
    ],
)
def test_one_day_in_every_form(raw):
    assert read_date(raw) == DAY
    assert written(read_date(raw)) == "2019-07-04"


@pytest.mark.parametrize(
    ("raw", "date"),
    [("2019", (2019, 1, 1)), (2019, (2019, 1, 1)), ("2019-7", (2019, 7, 1)), ("July 2019", (2019, 7, 1))],
)
def test_a_year_or_month_is_its_first_day(raw, date):
    assert read_date(raw) == datetime(*date)


@pytest.mark.parametrize(
    "raw",
    ["yesterday", "03/04/2019", "May", "May 4", "2019-13-01", "July 4, 2019 10:00 XYZ", "", 7, -5, True, None, 1e300],
)
def test_what_is_no_date_or_two_is_not_read(raw):
    assert read_date(raw) is None


def test_a_time_of_day_is_kept_and_written():
    assert written(read_date("2019-07-04 9:05")) == "2019-07-04T09:05:00"
