"""The pipeline `weather` for the chaos suite: small, and run by hand alone.

Its model adds a number to the observation; each run gets another number, so that every generation has values of its
own and a mix of two would show.
"""

from dataclasses import replace

from tests.acceptance.tiny_weather import weather as _tiny

weather = replace(
    _tiny,
    schedule="0 0 29 2 *",  # as good as never: the suite triggers each run itself
    integrity=replace(_tiny.integrity, schedule=None),
    generations_kept=60,
)
