"""Forms of LaMP's tasks as they were before, which studies and deployments hold: the same matches in linear time.

An atomic group, (?>...), keeps the first place that fits; what does not fit behind it does not fit behind a
later one.
"""

from __future__ import annotations


def _listing(listed: str, what: str) -> tuple[str, str]:
    before = rf"(?P<asked>[\s\S]*?\b{listed}: \[(?P<labels>[^\]]*)\][\s\S]*?{what}:\s*)(?P<text>[\s\S]*)"
    now = rf"(?P<asked>(?>[\s\S]*?\b{listed}: \[)(?P<labels>[^\]]*)\](?>[\s\S]*?{what}:\s*))(?P<text>[\s\S]*)"
    return before, now


REPLACED = dict(
    [
        _listing("tags", "description"),
        _listing("categories", "article"),
        (
            r"(?P<asked>[\s\S]*?score[\s\S]*?review:\s*)(?P<text>[\s\S]*)",
            r"(?P<asked>(?>[\s\S]*?score)(?>[\s\S]*?review:\s*))(?P<text>[\s\S]*)",
        ),
        (
            r'(?P<before>[\s\S]*?\btitle)(?P<after> "(?P<text>[\s\S]*)", which reference [\s\S]*?\[1\]: '
            r'"(?P<first>[\s\S]*)"\s+\[2\]: "(?P<second>[\s\S]*)"\s*)',
            r'(?P<before>(?>[\s\S]*?\btitle(?= ")))(?P<after> "(?>(?P<text>[\s\S]*?)", which reference )'
            r'(?>[\s\S]*?\[1\]: ")(?=[\s\S]*"\s*\Z)(?P<first>[\s\S]*)"\s+\[2\]: "(?P<second>[\s\S]*)"\s*)',
        ),
    ]
)
"""form as it was -> as it is. Of several `", which reference ` the title of LaMP-1 now ends at the first."""
