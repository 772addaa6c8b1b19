"""Events of TensorBoard: written at once, drawn anew when a run goes on, whatever killed it."""

from plum_jax.board import Board, read_events


def all_events(folder):
    return sorted(event for path in folder.iterdir() for event in read_events(path))


def test_events_are_there_at_once(tmp_path):
    board = Board(tmp_path)
    board.write(2, {"loss": 0.5, "lr": 0.25})
    assert [(key, value) for key, _, value in all_events(tmp_path)] == [(("loss", 2), 0.5), (("lr", 2), 0.25)]
    board.close()


def test_a_run_that_goes_on_has_every_step_once_and_keeps_the_times(tmp_path):
    board = Board(tmp_path)
    for step in (2, 4, 6):
        board.write(step, {"loss": 1.0 * step})
    board.close()
    before = {key: at for key, at, _ in all_events(tmp_path)}
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # a kill in the middle of a record
    (tmp_path / "notes.txt").write_text("not ours")
    board = Board(tmp_path, [(2, {"loss": 2.0}), (3, {"loss": 3.0}), (4, {"loss": 4.0})])
    board.write(6, {"loss": 7.0})
    board.close()
    assert (tmp_path / "notes.txt").exists()
    (tmp_path / "notes.txt").unlink()
    assert [(key[1], value) for key, _, value in all_events(tmp_path)] == [(2, 2.0), (3, 3.0), (4, 4.0), (6, 7.0)]
    after = {key: at for key, at, _ in all_events(tmp_path)}
    assert all(after["loss", step] == before["loss", step] for step in (2, 4))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_between_the_new_file_and_the_old_one_is_healed(tmp_path):
    Board(tmp_path / "a", [(2, {"loss": 2.0})]).close()
    Board(tmp_path / "b", [(2, {"loss": 2.0})]).close()
    (file,) = (tmp_path / "b").iterdir()
    file.rename(tmp_path / "a" / file.name)
    Board(tmp_path / "a", [(2, {"loss": 2.0})]).close()
    assert [key for key, _, _ in all_events(tmp_path / "a")] == [("loss", 2)]
