"""What a type checker must see in tasks; `make types` reads this, and nothing runs it.

An ignored error that is no error any more is one itself (warn_unused_ignores).
"""

from typing import assert_type

from zodbjobs.model.task import Task
from zodbjobs.tasks import Tasks

tasks = Tasks('memory:')


@tasks.job
def price(article: str, pieces: int = 1) -> float:
    return len(article) * pieces


@tasks.job(retries=3, backoff=60)
def rename(old: str, *, new: str) -> None:
    """With options the signature is kept, too."""


assert_type(price('tea', 2), float)
assert_type(price.task('tea', pieces=2), Task)
rename('tea', new='chai')
assert_type(rename.task('tea', new='chai'), Task)

price(7)  # type: ignore[arg-type]
price.task(7)  # type: ignore[arg-type]
price.task('tea', count=2)  # type: ignore[call-arg]
rename.task('tea', 'chai')  # type: ignore[call-arg]
rename.task('tea')  # type: ignore[call-arg]

with tasks.options(retries=2) as options:
    assert_type(options.task(print, 1), Task)
