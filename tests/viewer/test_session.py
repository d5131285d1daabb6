"""The viewer's state: layers, undo and redo, locks, the journal and its folder."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from usam_jax.utils.errors import DataError, UsageError
from usam_jax.viewer.autosave import Autosave, folder_of
from usam_jax.viewer.cache import SliceCache
from usam_jax.viewer.journal import Journal, read_entries
from usam_jax.viewer.session import Refused, Session
from usam_jax.viewer.slice_state import NO_PROMPTS, Prompts

SHAPE = (3, 4, 5)
CLASSES = ("background", "rectum", "tumour")
IDENTITY = {
    "source": "ct.nii.gz",
    "shape": [3, 4, 5],
    "affine": np.eye(4).tolist(),
    "classes": list(CLASSES),
    "checkpoint": "",
}


def plane(value):
    return np.full(SHAPE[1:], value, np.uint8)


def click(x=1.0, y=1.0, c=1):
    return Prompts(((x, y, c),))


def stroke(session, number=0, label=2, corner=(1, 1), size=(2, 2)):
    session.paint(number, corner, np.ones(size, bool), label)


def look(session):
    """Everything that a user sees."""
    states = {i: session.slice_state(i) for i in range(SHAPE[0])}
    return session.labels.tobytes(), session.counts.tobytes(), states


def test_layers_cover_each_other():
    session = Session(SHAPE, CLASSES)
    session.set_automatic(0, plane(1))
    session.set_propagated(0, plane(2), 1, group=1)
    assert (session.labels[0] == 2).all()
    session.set_prompts(0, click(), plane(0))
    stroke(session, label=1)
    expected = plane(0)
    expected[1:3, 1:3] = 1
    np.testing.assert_array_equal(session.labels[0], expected)
    session.set_prompts(0, click(2.0), plane(2))  # does not overwrite the edit
    assert (session.labels[0][1:3, 1:3] == 1).all() and (session.labels[0] == 2).sum() == 16
    session.clear(0, "edits")
    assert (session.labels[0] == 2).all()
    session.clear(0, "prompts")
    assert (session.labels[0] == 1).all() and session.slice_state(0).prompts == NO_PROMPTS


def test_eraser_writes_background_over_the_prediction():
    session = Session(SHAPE, CLASSES)
    session.set_automatic(0, plane(1))
    stroke(session, label=0)
    assert (session.labels[0] == 0).sum() == 4
    assert session.counts.sum(0).tolist() == [44, 16, 0]


def test_locked_slice_refuses_all_actions():
    session = Session(SHAPE, CLASSES)
    session.set_locked(0, True)
    for action in (
        lambda: stroke(session),
        lambda: session.set_prompts(0, click(), plane(1)),
        lambda: session.set_propagated(0, plane(1), 1, 1),
        lambda: session.clear(0, "edits"),
    ):
        with pytest.raises(Refused, match="slice 0 is locked"):
            action()
    session.set_locked(0, False)
    stroke(session)
    assert (session.labels[0] == 2).sum() == 4


@pytest.mark.parametrize(
    ("corner", "size"), [((4, 0), (1, 2)), ((0, -1), (1, 1)), ((0, 3), (2, 1))]
)
def test_stroke_outside_the_slice_is_refused(corner, size):
    with pytest.raises(Refused, match="inside the slice"):
        stroke(Session(SHAPE, CLASSES), corner=corner, size=size)


def test_propagation_is_one_step_of_undo():
    session = Session(SHAPE, CLASSES)
    for i in range(3):
        session.set_propagated(i, plane(1), 1, group=7)
    action = session.undo()
    assert action and action.what == "propagation from slice 1" and action.number == 1
    assert not session.labels.any() and session.undo() is None
    session.redo()
    assert session.labels.all()


def test_click_during_propagation_does_not_split_it():
    session = Session(SHAPE, CLASSES)
    session.set_propagated(0, plane(1), 1, group=7)
    session.set_prompts(2, click(), plane(2))
    session.set_propagated(1, plane(1), 1, group=7)
    words = [x.what for x in (session.undo(), session.undo()) if x]
    assert words == ["point (rectum) on slice 2", "propagation from slice 1"]
    assert not session.labels.any() and session.undo() is None


def test_click_on_a_propagated_slice_stays_its_own_step():
    session = Session(SHAPE, CLASSES)
    session.set_propagated(0, plane(1), 1, group=7)
    session.set_prompts(0, click(), plane(2))
    session.set_propagated(0, plane(2), 1, group=7)
    assert [x.what[:5] for x in session.history.done] == ["propa", "point", "propa"]


def test_action_that_changes_nothing_is_no_step():
    session = Session(SHAPE, CLASSES)
    session.clear(0, "prompts")
    assert session.undo() is None and session.revision == 0


def test_undo_says_what_it_undoes():
    session = Session(SHAPE, CLASSES)
    points = [(1.0, 1.0, 2), (2.0, 2.0, 0)]
    session.set_prompts(1, Prompts(tuple(points[:1])), plane(1))
    session.set_prompts(1, Prompts(tuple(points)), plane(1))
    session.set_prompts(1, Prompts(tuple(points), (0.0, 0.0, 2.0, 2.0)), plane(1))
    session.set_prompts(1, Prompts(tuple(points[:1]), (0.0, 0.0, 2.0, 2.0)), plane(1))
    session.set_prompts(1, NO_PROMPTS, None)
    words = []
    while action := session.undo():
        words.append(action.what.removesuffix(" on slice 1"))
    assert words == [
        "remove the prompts",
        "remove a point",
        "box",
        "negative point",
        "point (tumour)",
    ]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["prompts", "paint", "propagate", "clear", "lock", "undo", "redo"]),
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    max_size=14,
)


def act(session, name, number, value):
    """Do one action of a random sequence, and return whether the session took it."""
    try:
        if name == "prompts":
            session.set_prompts(number, click(value, number, value), plane(value))
        elif name == "paint":
            stroke(session, number, value, (value, 0))
        elif name == "propagate":
            session.set_propagated(number, plane(value), 0, group=value)
        elif name == "clear":
            session.clear(number, "edits" if value else "prompts")
        elif name == "lock":
            session.set_locked(number, bool(value))
        else:
            getattr(session, name)()
    except Refused:
        assert session.slice_state(number).locked


@hypothesis.given(ACTIONS)
@hypothesis.settings(max_examples=60, deadline=None)
def test_undo_all_and_redo_all_restore_the_bytes(actions):
    session = Session(SHAPE, CLASSES)
    session.set_automatic(1, plane(2))
    start = look(session)
    for action in actions:
        act(session, *action)
    end, steps = look(session), len(session.history.done)
    while session.undo():
        pass
    assert look(session) == start
    for _ in range(steps):
        session.redo()
    assert look(session) == end


class ListJournal:
    """A journal in memory."""

    path, entries = "journal", ()

    def __init__(self):
        self.lines = []

    def append(self, entry):
        self.lines.append(json.dumps(entry))


@hypothesis.given(ACTIONS)
@hypothesis.settings(max_examples=60, deadline=None)
def test_journal_replays_to_the_same_state(actions):
    journal = ListJournal()
    session = Session(SHAPE, CLASSES, journal=journal)
    for action in actions:
        act(session, *action)
    again = ListJournal()
    again.entries = [json.loads(x) for x in journal.lines]
    restored = Session(SHAPE, CLASSES, journal=again)
    assert look(restored) == look(session)
    assert [x.what for x in restored.history.done] == [x.what for x in session.history.done]
    assert len(restored.history.undone) == len(session.history.undone)


def make_journal(path):
    journal = Journal(path)
    session = Session(SHAPE, CLASSES, journal=journal)
    session.set_prompts(0, click(), plane(1))
    stroke(session, 1)
    session.undo()
    assert journal.close()
    return session


def test_journal_torn_at_every_byte_keeps_whole_lines(tmp_path):
    make_journal(tmp_path / "journal.jsonl")
    content = (tmp_path / "journal.jsonl").read_bytes()
    torn = tmp_path / "torn.jsonl"
    for length in range(len(content) + 1):
        torn.write_bytes(content[:length])
        entries, good, rest = read_entries(torn)
        assert len(entries) == content[:length].count(b"\n") and good + rest == length


def test_journal_continues_after_a_torn_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    make_journal(path)
    path.write_bytes(path.read_bytes() + b'{"undo": tr')
    journal = Journal(path)
    assert "torn last line of 11 bytes" in journal.note
    session = Session(SHAPE, CLASSES, journal=journal)
    session.redo()
    assert journal.close()
    restored = Session(SHAPE, CLASSES, journal=Journal(path))
    assert (restored.labels[1] == 2).sum() == 4


def test_damaged_line_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    make_journal(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{]\n" + lines[1])
    with pytest.raises(DataError, match="line 2 is damaged"):
        Journal(path)
    for bad in (b'{"undo": true}\n{"undo": true}\n', b'{"action": "x"}\n'):
        path.write_bytes(lines[0] + bad)
        journal = Journal(path)
        with pytest.raises(DataError, match=r"line [23] is damaged"):
            Session(SHAPE, CLASSES, journal=journal)
        journal.close()


def test_journal_keeps_entries_while_the_disk_is_full(tmp_path, monkeypatch):
    from usam_jax.viewer import journal as module

    monkeypatch.setattr(module, "RETRY_S", 0.01)
    full = [True]
    write = Journal.write

    def fail_half_way(self, lines):
        if not full[0]:
            return write(self, lines)
        with self.path.open("ab") as file:
            file.write(lines[0][:5])
        return "no space left"

    monkeypatch.setattr(Journal, "write", fail_half_way)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"undo": True})
    assert not journal.flush() and journal.problem == "no space left"
    full[0] = False
    journal.append({"redo": True})
    assert journal.close() and not journal.problem
    assert read_entries(journal.path)[0] == [{"undo": True}, {"redo": True}]


def test_journal_keeps_entries_that_arrive_during_a_write(tmp_path, monkeypatch):
    write = Journal.write
    arriving = [{"number": number} for number in range(20)]

    def write_while_entries_arrive(self, lines):
        if arriving:
            self.append(arriving.pop(0))
        return write(self, lines)

    monkeypatch.setattr(Journal, "write", write_while_entries_arrive)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"number": -1})
    assert journal.flush()
    assert journal.close()
    assert [x["number"] for x in read_entries(journal.path)[0]] == list(range(-1, 20))


def test_journal_reports_a_folder_that_vanished(tmp_path):
    (tmp_path / "a").mkdir()
    journal = Journal(tmp_path / "a" / "journal.jsonl")
    (tmp_path / "a").rmdir()
    journal.append({"undo": True})
    assert not journal.flush() and "cannot be written" in journal.problem
    assert not journal.close()


def open_autosave(tmp_path, fresh=False, **changes):
    return Autosave(tmp_path / "mask.nii.gz", IDENTITY | changes, fresh)


def test_autosave_restores_actions_and_automatic_mask(tmp_path):
    saved = open_autosave(tmp_path)
    session = Session(SHAPE, CLASSES, journal=saved.journal)
    session.set_automatic(1, plane(2))
    saved.write_automatic(session.automatic, session.has_automatic)
    stroke(session)
    session.mark_saved(session.revision)
    assert saved.close()
    again = open_autosave(tmp_path)
    assert again.notes == [f"restored 2 actions from {folder_of(tmp_path / 'mask.nii.gz')}"]
    restored = Session(SHAPE, CLASSES, journal=again.journal)
    restored.set_all_automatic(*again.read_automatic(SHAPE))
    assert look(restored) == look(session) and restored.has_automatic.tolist() == [0, 1, 0]
    assert restored.saved_revision == restored.revision
    again.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "other.nii.gz"},
        {"shape": [3, 4, 6]},
        {"classes": ["background", "liver"]},
        {"affine": np.diag([2.0, 1, 1, 1]).tolist()},
    ],
    ids=lambda x: next(iter(x)),
)
def test_autosave_of_another_ct_is_refused(tmp_path, changes):
    open_autosave(tmp_path).close()
    with pytest.raises(UsageError, match=r"earlier session.*--fresh"):
        open_autosave(tmp_path, **changes)
    open_autosave(tmp_path).close()  # the refusal has released the lock


def test_autosave_notes_another_checkpoint(tmp_path):
    open_autosave(tmp_path, checkpoint="mine, step 5").close()
    saved = open_autosave(tmp_path, checkpoint="mine, step 9")
    assert "came from mine, step 5, new ones come from mine, step 9" in saved.notes[0]
    assert saved.describe_earlier() == "; earlier predictions from mine, step 5"
    saved.close()
    again = open_autosave(tmp_path, checkpoint="mine, step 9")
    assert "mine, step 5" in again.describe_earlier()
    again.close()


def test_second_viewer_on_one_mask_is_refused(tmp_path):
    saved = open_autosave(tmp_path)
    with pytest.raises(UsageError, match="another viewer is open"):
        open_autosave(tmp_path, fresh=True)
    saved.close()


def test_fresh_keeps_the_earlier_folders(tmp_path):
    for number in range(3):
        saved = open_autosave(tmp_path, fresh=True, source=f"{number}.nii.gz")
        saved.close()
    names = sorted(x.name for x in tmp_path.iterdir())
    assert names == ["mask.view", "mask.view.1", "mask.view.2"]
    assert "0.nii.gz" in (tmp_path / "mask.view.1" / "session.json").read_text()


def test_damaged_automatic_mask_is_named(tmp_path):
    saved = open_autosave(tmp_path)
    (saved.folder / "automatic.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"automatic.npz: is damaged"):
        saved.read_automatic(SHAPE)
    saved.close()


def test_cache_drops_the_farthest_slices():
    cache = SliceCache(100)
    cache.center = 5
    for number in (4, 5, 9, 6):
        cache.put(number, str(number), 30)
    assert sorted(cache.values) == [4, 5, 6] and cache.bytes == 90
    cache.put(90, "large", 200)  # the new one always stays
    assert list(cache.values) == [90] and cache.get(5) is None
    cache.clear()
    assert cache.bytes == 0
