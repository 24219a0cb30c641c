"""Arguments that may be changed: no change is lost, and none is made to a copy."""

import copy

import pytest

from tests.model.support import work
from zodbjobs import Job

LIST_CHANGES = [
    lambda args: args.append(9),
    lambda args: args.extend([8, 9]),
    lambda args: args.insert(0, 9),
    lambda args: args.remove(1),
    lambda args: args.pop(),
    lambda args: args.clear(),
    lambda args: args.reverse(),
    lambda args: args.sort(reverse=True),
    lambda args: args.__setitem__(0, 9),
    lambda args: args.__setitem__(slice(1, 2), [7, 8]),
    lambda args: args.__delitem__(0),
    lambda args: args.__iadd__([9]),
    lambda args: args.__imul__(2),
]

DICT_CHANGES = [
    lambda kwargs: kwargs.update(c=3),
    lambda kwargs: kwargs.setdefault('c', 3),
    lambda kwargs: kwargs.pop('a'),
    lambda kwargs: kwargs.popitem(),
    lambda kwargs: kwargs.clear(),
    lambda kwargs: kwargs.__setitem__('a', 9),
    lambda kwargs: kwargs.__delitem__('a'),
    lambda kwargs: kwargs.__ior__({'c': 3}),
]


@pytest.fixture
def job(side, queue):
    job = queue.put(Job(work, 1, 2, a=1, b=2))
    side.commit()
    return job


def stored(house, job, attribute):
    """What another connection finds."""
    value = getattr(house.side().twin(job), attribute)
    return dict(value) if attribute == 'kwargs' else list(value)


@pytest.mark.parametrize(
    ('attribute', 'change'),
    [('args', change) for change in LIST_CHANGES] + [('kwargs', change) for change in DICT_CHANGES],
)
def test_every_change_is_stored(house, side, job, attribute, change):
    expected = copy.copy([1, 2] if attribute == 'args' else {'a': 1, 'b': 2})
    change(expected)
    change(getattr(job, attribute))
    assert getattr(job, attribute) == expected
    side.commit()
    assert stored(house, job, attribute) == expected


def test_there_is_no_other_way_to_change_them():
    """Whatever list and dict can do to themselves is listed above."""
    silent = {
        '__init__', '__init_subclass__', '__new__', '__setattr__', '__delattr__', '__reduce__',
        '__reduce_ex__', '__getattribute__', '__class_getitem__', '__subclasshook__',
    }  # fmt: skip
    known = {
        list: {'append', 'extend', 'insert', 'remove', 'pop', 'clear', 'reverse', 'sort', 'copy',
               'count', 'index'},
        dict: {'update', 'setdefault', 'pop', 'popitem', 'clear', 'copy', 'get', 'items', 'keys',
               'values', 'fromkeys'},
    }  # fmt: skip
    for base, names in known.items():
        public = {name for name in dir(base) if not name.startswith('_')}
        assert public == names
        changing = {n for n in dir(base) if n.startswith(('__i', '__set', '__del'))} - silent
        assert changing <= {
            '__iadd__',
            '__imul__',
            '__ior__',
            '__iter__',
            '__setitem__',
            '__delitem__',
        }


def test_an_operator_keeps_the_object(job):
    args = job.args
    args += [3]
    args *= 2
    assert args is job.args
    kwargs = job.kwargs
    kwargs |= {'c': 3}
    assert kwargs is job.kwargs
    job.args += [4]
    assert job.args[-1] == 4


def test_a_change_that_fails_changes_nothing(side, job):
    with pytest.raises(ValueError):
        job.args.remove('unheard')
    with pytest.raises(KeyError):
        job.kwargs.pop('unheard')
    assert (job.args, job.kwargs) == ([1, 2], {'a': 1, 'b': 2})


def test_an_abort_takes_changes_back(side, job):
    args, kwargs = job.args, job.kwargs
    args.append(3)
    kwargs['c'] = 3
    side.abort()
    assert (job.args, job.kwargs) == ([1, 2], {'a': 1, 'b': 2})
    args.append(4)
    kwargs['d'] = 4
    assert (job.args, job.kwargs) == ([1, 2, 4], {'a': 1, 'b': 2, 'd': 4})


def test_a_list_that_was_kept_takes_over_what_others_stored(house, side, job):
    args, kwargs = job.args, job.kwargs
    other = house.side()
    other.twin(job).args.append('theirs')
    other.twin(job).kwargs['theirs'] = 0
    other.commit()
    side.begin()
    args.append('mine')
    kwargs['mine'] = 1
    assert args == job.args == [1, 2, 'theirs', 'mine']
    assert kwargs == job.kwargs == {'a': 1, 'b': 2, 'theirs': 0, 'mine': 1}
    side.commit()
    assert stored(house, job, 'args') == [1, 2, 'theirs', 'mine']


def test_of_two_lists_of_one_job_no_change_is_lost(side, job):
    old = job.args
    side.connection.cacheMinimize()
    new = job.args
    new.append('new')
    old.append('old')
    assert job.args == [1, 2, 'new', 'old']


def test_they_may_be_replaced(house, side, job):
    job.args = (5, 6)
    job.kwargs = {'z': 0}
    job.args.append(7)
    side.commit()
    assert stored(house, job, 'args') == [5, 6, 7]
    assert stored(house, job, 'kwargs') == {'z': 0}


def test_a_copy_is_the_application_s_own(side, job):
    for taken in (copy.copy(job.args), job.args.copy(), list(job.args), copy.deepcopy(job.args)):
        taken.append('other')
        assert type(taken) is list
    assert job.args == [1, 2]
    assert not job._p_changed


def test_reading_marks_nothing(side, job):
    assert (len(job.args), job.args[0], job.args + [3], job.kwargs.get('a')) == (2, 1, [1, 2, 3], 1)
    assert not job._p_changed
