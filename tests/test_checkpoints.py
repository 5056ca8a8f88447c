"""Checkpoints: what is written is what is read, a damaged one is found and named, another run's is refused."""

import json
import pathlib
import random
import shutil
import subprocess
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy

import nondiff as nd
from nondiff.run import checkpoint as format
from nondiff.run.files import new_folder

FILES = ("manifest.json", "manifest.sha256", "state.safetensors")
PROBLEM = nd.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(40))
TRAINER = nd.OpenES(optax.adam(0.1), sigma=0.1, population=6)


def start(trainer: nd.AbstractTrainer = TRAINER, problem: nd.AbstractProblem = PROBLEM) -> nd.TrainState:
    return nd.init(problem, trainer, key=jr.key(0))


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(jr.key_data(x) if nd.core.tree.is_key(x) else x) for x in jtu.tree_leaves(tree)]


def same(a: Any, b: Any) -> bool:
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture(scope="module")
def whole() -> nd.Result:
    return nd.fit(PROBLEM, TRAINER, steps=60, key=jr.key(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the checkpoints of steps 20, 30 and 40."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    nd.fit(PROBLEM, TRAINER, steps=40, key=jr.key(0), callbacks=[nd.Checkpointer(folder, every=10)])
    return folder


@pytest.fixture
def folder(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of it."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_every_tenth_is_saved_and_three_are_kept(saved: pathlib.Path) -> None:
    assert nd.Checkpointer(saved).steps() == [20, 30, 40]
    assert sorted(path.name for path in (saved / "40").iterdir()) == list(FILES)
    assert sorted(path.name for path in saved.iterdir()) == [".lock", "20", "30", "40"]
    subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=saved / "40", check=True, capture_output=True)
    manifest = json.loads((saved / "40" / "manifest.json").read_text())
    assert manifest["step"] == 40 and manifest["versions"]["jax"] == jax.__version__
    assert manifest["leaves"]["state.key"] == {"shape": [], "dtype": "key<fry>"}
    assert manifest["leaves"]["state.step"] == {"shape": [], "dtype": "int32"}


@pytest.mark.parametrize("step", [20, 30, 40])
def test_a_run_goes_on_bit_for_bit(folder: pathlib.Path, whole: nd.Result, step: int) -> None:
    for later in range(step + 10, 50, 10):
        shutil.rmtree(folder / str(later))
    checkpoints = nd.Checkpointer(folder, every=10)
    restored = checkpoints.restore(start())
    assert (restored.step, restored.path) == (step, folder / str(step))
    result = nd.fit(PROBLEM, TRAINER, steps=60, state=restored, callbacks=[checkpoints])
    assert same(result.state, whole.state) and result.steps == 60
    assert checkpoints.steps() == [40, 50, 60]
    assert result.history == [row for row in whole.history if row["step"] > step]


def test_nothing_saved_yet(tmp_path: pathlib.Path, whole: nd.Result) -> None:
    first = nd.Checkpointer(tmp_path / "none").restore(start())
    assert (first.step, first.path, dict(first.memory)) == (0, None, {})
    assert same(nd.fit(PROBLEM, TRAINER, steps=60, state=first).state, whole.state)


def damage(file: pathlib.Path, how: str, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if how == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_named_and_the_one_before_is_used(folder: pathlib.Path, name: str, how: str) -> None:
    rng, file, like = random.Random(f"{name} {how}"), folder / "40" / name, start()
    good = file.read_bytes()
    for _ in range(30):
        damage(file, how, rng)
        with pytest.warns(UserWarning, match="going on from step 30") as caught:
            restored = nd.Checkpointer(folder).restore(like)
        assert restored.step == 30
        named = str(file) in str(caught[0].message) or (name == "manifest.sha256" and name in str(caught[0].message))
        assert named, caught[0].message
        file.write_bytes(good)
    assert nd.Checkpointer(folder).restore(like).step == 40


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_damage_too(folder: pathlib.Path, name: str) -> None:
    (folder / "40" / name).unlink()
    with pytest.warns(UserWarning, match=rf"{name} is missing"):
        assert nd.Checkpointer(folder).restore(start()).step == 30


def test_several_damaged_ones_are_all_named_and_written_anew(folder: pathlib.Path, whole: nd.Result) -> None:
    for step in (30, 40):
        damage(folder / str(step) / "state.safetensors", "flip", random.Random(0))
    checkpoints = nd.Checkpointer(folder, every=10)
    with pytest.warns(UserWarning) as caught:
        restored = checkpoints.restore(start())
    assert restored.step == 20
    assert ["/40/" in str(w.message) for w in caught] == [True, False]
    assert ["/30/" in str(w.message) for w in caught] == [False, True]
    result = nd.fit(PROBLEM, TRAINER, steps=40, state=restored, callbacks=[checkpoints])
    assert nd.Checkpointer(folder).restore(start()).step == 40 and checkpoints.steps() == [20, 30, 40]
    assert same(nd.fit(PROBLEM, TRAINER, steps=60, state=result.state).state, whole.state)


def test_all_damaged_is_refused(folder: pathlib.Path) -> None:
    for step in (20, 30, 40):
        damage(folder / str(step) / "state.safetensors", "cut", random.Random(step))
    with pytest.raises(nd.CheckpointError, match="can be used") as caught:
        nd.Checkpointer(folder).restore(start())
    assert all(f"{folder}/{step}/state.safetensors" in str(caught.value) for step in (20, 30, 40))


OTHERS = {
    "shape": (
        lambda: start(problem=nd.BlackBox(lambda x: jnp.sum(x**2), jnp.zeros(41))),
        r"state\.trainer\.\w+.*: float32\[40\] in the checkpoint, float32\[41\] here",
    ),
    "dtype": (
        lambda: jtu.tree_map(lambda x: x.astype(jnp.float16) if x.dtype == jnp.float32 else x, start()),
        r"float32\[40\] in the checkpoint, float16\[40\] here",
    ),
    "tree": (
        lambda: start(trainer=nd.OpenES(optax.sgd(0.1), sigma=0.1, population=6)),
        r"mu: float32\[40\] in the checkpoint, not here",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_state_is_refused_leaf_by_leaf(folder: pathlib.Path, other: str) -> None:
    like, message = OTHERS[other]
    with pytest.raises(nd.CheckpointError, match=message) as caught:
        nd.Checkpointer(folder).restore(like())
    assert str(folder / "40") in str(caught.value)
    with pytest.raises(nd.CheckpointError, match=message):
        nd.Checkpointer(folder).restore(like(), exact=False)  # never


def rewrite(folder: pathlib.Path, **fields: Any) -> None:
    """Another manifest, whole."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}))
    (folder / "manifest.sha256").write_text(format._digest(folder))


def test_other_versions_are_refused_or_accepted(folder: pathlib.Path) -> None:
    versions = json.loads((folder / "40" / "manifest.json").read_text())["versions"]
    rewrite(folder / "40", versions={**versions, "jax": "0.1.0", "device": "abacus"})
    with pytest.raises(nd.CheckpointError, match=rf"jax: 0.1.0 in the checkpoint, {jax.__version__} here") as caught:
        nd.Checkpointer(folder).restore(start())
    assert "device: abacus in the checkpoint, cpu here" in str(caught.value) and "exact=False" in str(caught.value)
    with pytest.warns(UserWarning, match="jax: 0.1.0 in the checkpoint"):
        assert nd.Checkpointer(folder).restore(start(), exact=False).step == 40


def test_another_format_is_refused(folder: pathlib.Path) -> None:
    rewrite(folder / "40", format=2)
    with pytest.raises(nd.CheckpointError, match=r"has format 2, and this version of nondiff reads format 1"):
        nd.Checkpointer(folder).restore(start())


def test_other_settings_are_refused_setting_by_setting(tmp_path: pathlib.Path) -> None:
    config = {"net": {"width": 8}, "rates": (0.1, 0.2)}
    callbacks = [nd.Checkpointer(tmp_path, config=config)]
    nd.fit(PROBLEM, TRAINER, steps=5, key=jr.key(0), callbacks=callbacks)
    assert nd.Checkpointer(tmp_path, config=config).restore(start()).step == 5
    other = {"net": {"width": 9}, "rates": (0.1, 0.2), "new": None}
    with pytest.raises(nd.CheckpointError) as caught:
        nd.Checkpointer(tmp_path, config=other).restore(start())
    assert "config.net.width: 8 in the checkpoint, 9 here" in str(caught.value)
    assert "config.new: None here, not in the checkpoint" in str(caught.value) and "rates" not in str(caught.value)


def test_a_state_of_another_trainer_is_refused_by_fit(whole: nd.Result) -> None:
    with pytest.raises(ValueError, match="is a state of another problem or trainer") as caught:
        nd.fit(PROBLEM, nd.Backprop(optax.adam(0.1)), steps=70, state=whole.state)
    assert "in the state" in str(caught.value)


def test_a_folder_with_a_newer_checkpoint_is_refused(folder: pathlib.Path) -> None:
    for key in ({"key": jr.key(0)}, {"state": start()}):
        with pytest.raises(nd.CheckpointError, match="holds checkpoints up to step 40, and this run begins at step 0"):
            nd.fit(PROBLEM, TRAINER, steps=5, callbacks=[nd.Checkpointer(folder)], **key)
    assert nd.Checkpointer(folder).steps() == [20, 30, 40]


def test_one_process_at_a_time(folder: pathlib.Path) -> None:
    with nd.Checkpointer(folder) as first:
        first.save(50, start())
        with pytest.raises(nd.FolderInUse, match=r"is in use by process \d+ on .* \(since 20"):
            nd.Checkpointer(folder).save(60, start())
    with nd.Checkpointer(folder) as second:
        second.save(60, start())
    assert second.steps() == [40, 50, 60]


def test_every_kind_of_array_comes_back(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    tree = {
        "bfloat16": jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16),
        "float8": jnp.asarray(rng.normal(size=5), jnp.float8_e4m3b11fnuz),
        "int4": jnp.asarray([-8, 7, 1], jnp.int4),
        "complex": jnp.asarray([1 + 2j], jnp.complex64),
        "bool": jnp.asarray([[True], [False]]),
        "empty": jnp.zeros((0, 3)),
        "nan": jnp.asarray([jnp.nan, -0.0, jnp.inf]),
        "keys": jr.split(jr.key(3), 2),
        "host": rng.normal(size=(2, 3)).T,
        "complex128": np.asarray([1 - 2j]),
        "ml_dtypes": np.asarray([1, 2], ml_dtypes.bfloat16),
        "scalar": np.float64(0.1),
        "python": (3, 0.1, True, 1 + 2j, None),
        "'quoted'.name": [jnp.zeros(()), "left to the code"],
    }
    with nd.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, tree)

    def emptied(x: Any) -> Any:
        if isinstance(x, str) or nd.core.tree.is_key(x):
            return x
        if isinstance(x, bool | int | float | complex):
            return type(x)(0)
        return jnp.zeros_like(x) if isinstance(x, jax.Array) else np.zeros_like(x)

    blank = jtu.tree_map(emptied, tree)
    got = nd.Checkpointer(tmp_path).restore(blank).state
    assert jtu.tree_structure(got) == jtu.tree_structure(tree)
    for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(tree), strict=True):
        assert type(a) is type(b)
        if not isinstance(b, str):
            assert leaves(a)[0].dtype == leaves(b)[0].dtype and leaves(a)[0].tobytes() == leaves(b)[0].tobytes()


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writing, write = threading.Event(), threading.Event(), format.write

    def slow(*args: Any) -> None:
        writing.set()
        assert gate.wait(60)
        write(*args)

    monkeypatch.setattr(format, "write", slow)
    with nd.Checkpointer(tmp_path) as checkpoints:
        x = jnp.arange(3.0)
        checkpoints.save(1, {"x": x})
        assert writing.wait(60)  # and `save` has returned
        assert checkpoints.steps() == []
        x.delete()  # as the next step does that overwrites it
        gate.set()
    np.testing.assert_array_equal(nd.Checkpointer(tmp_path).restore({"x": jnp.zeros(3)}).state["x"], [0.0, 1.0, 2.0])


def test_saved_by_time(tmp_path: pathlib.Path) -> None:
    checkpoints = nd.Checkpointer(tmp_path, minutes=1e-9, keep=100)
    nd.fit(PROBLEM, TRAINER, steps=6, key=jr.key(0), callbacks=[checkpoints], log_every=2)
    assert checkpoints.steps()[-1] == 6 and len(checkpoints.steps()) >= 3
    never = nd.Checkpointer(tmp_path / "never", minutes=None)
    nd.fit(PROBLEM, TRAINER, steps=6, key=jr.key(0), callbacks=[never])
    assert never.steps() == [6]  # the last


def test_a_folder_appears_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), new_folder(tmp_path / "a") as aside:
        (aside / "file").write_text("half")
        raise RuntimeError("in the middle")
    assert list(tmp_path.iterdir()) == []


def test_when_everything_fails_the_last_good_state_is_saved(tmp_path: pathlib.Path) -> None:
    problem = nd.BlackBox(lambda x: jnp.where(x[0] > 0.9, jnp.nan, (x[0] - 1.0) ** 2), jnp.zeros(1))
    trainer, checkpoints = nd.Backprop(optax.sgd(0.1)), nd.Checkpointer(tmp_path)
    with pytest.raises(nd.NonFiniteError) as caught:
        nd.fit(problem, trainer, steps=1000, key=jr.key(0), callbacks=[checkpoints])
    state = nd.Checkpointer(tmp_path).restore(nd.init(problem, trainer, key=jr.key(0))).state
    assert same(state, caught.value.state) and float(trainer.params(state.trainer)[0]) > 0.8


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"`Checkpointer\(every=0\)`: expected a whole number of at least 1"),
        ({"every": 2.5}, r"`Checkpointer\(every=2.5\)`"),
        ({"minutes": 0}, r"`Checkpointer\(minutes=0\)`"),
        ({"minutes": float("nan")}, r"`Checkpointer\(minutes=nan\)`"),
        ({"keep": 0}, r"`Checkpointer\(keep=0\)`"),
        ({"config": {"f": len}}, r"`Checkpointer\(config\)`: expected what JSON can hold"),
    ],
)
def test_what_it_refuses(tmp_path: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nd.Checkpointer(tmp_path, **options)


def test_a_file_is_no_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="this is a file; expected a folder"):
        nd.Checkpointer(tmp_path / "file")


def test_no_pickle_is_read(folder: pathlib.Path) -> None:
    """`load_file` of safetensors holds arrays only; an object array cannot even be stored."""
    with pytest.raises(Exception, match="dtype"):
        safetensors.numpy.save({"x": np.asarray([object()])})
    code = f"""
import sys, pickle
import jax, nondiff, optax, jax.numpy as jnp
def refuse(*args, **kwargs): raise AssertionError("pickle was used")
pickle.load = pickle.loads = pickle.Unpickler = refuse
problem = nondiff.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(40))
trainer = nondiff.OpenES(optax.adam(0.1), sigma=0.1, population=6)
print(nondiff.Checkpointer({str(folder)!r}).restore(nondiff.init(problem, trainer, key=jax.random.key(0))).step)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "40\n"


@pytest.mark.parametrize("where", ["metrics", "stop", "callbacks"])
def test_a_row_that_a_hook_failed_at_is_shown_again(tmp_path: pathlib.Path, where: str) -> None:
    """To those before it and after it in the lists, and judged once."""
    broken = [False]

    def fail(moment: nd.Moment) -> Any:
        if moment.step == 30 and broken[0]:
            raise RuntimeError("broken")
        return {"half": moment.row["loss"] / 2} if where == "metrics" else None

    def run(folder: pathlib.Path, steps: int = 60) -> nd.Result:
        saver = nd.Checkpointer(folder / "checkpoints", minutes=None)
        hooks = {
            "metrics": [lambda moment: {"twice": 2 * moment.row["loss"]}],
            "stop": [nd.Patience(30, "twice", least=1e9)],  # ends after step 40: the best is the row of step 10
            "callbacks": [nd.JSONLines(folder / "rows.jsonl"), saver],
        }
        hooks[where] = [hooks[where][0], fail, *hooks[where][1:]]
        return nd.fit(PROBLEM, TRAINER, steps=steps, state=saver.restore(start()), log_every=10, **hooks)

    whole = run(tmp_path / "whole")
    broken[0] = True
    for _ in range(2):  # the second attempt fails at once, and nothing is lost by it
        with pytest.raises(RuntimeError, match="broken") as caught:
            run(tmp_path / "cut")
        assert nd.Checkpointer(tmp_path / "cut" / "checkpoints").steps() == [30]
        assert int(caught.value.state.step) == 30
    broken[0] = False
    rest = run(tmp_path / "cut")
    assert (rest.steps, rest.reason) == (whole.steps, whole.reason) == (40, whole.reason)
    assert rest.history == whole.history[2:] and same(rest.state, whole.state)
    files = [nd.run.rows.read_rows(tmp_path / name / "rows.jsonl") for name in ("whole", "cut")]
    assert [{**row, "seconds": 0} for row in files[0]] == [{**row, "seconds": 0} for row in files[1]]
