"""Programs in C++ and C that use the library: found by find_package, or built along by add_subdirectory."""

import functools
import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support import consumers, hostile, kills, kinds
from support.consumers import needs_tools, run

import pyoptim as po
from pyoptim import nn
from pyoptim.runtime import files

native = pytest.importorskip("pyoptim.runtime._native")


@pytest.fixture(scope="session")
def folder(build_once):
    """The consumers built both ways: one compilation of the library serves both."""
    return build_once("cmake", consumers.build)


@pytest.fixture(scope="session")
def built(folder):
    return {"add_subdirectory": folder / "sub", "find_package": folder / "found"}


@pytest.fixture(params=["add_subdirectory", "find_package"])
def programs(request, built):
    return built[request.param]


@needs_tools
@pytest.mark.parametrize("frozen", [(), ("3.", "7.block.0.", "7.block.2.block.0.")], ids=["all", "frozen"])
def test_cpp_trains_a_python_model_to_the_same_bits(programs, tmp_path, frozen):
    def make():
        model = nn.Sequential(
            nn.Flatten(),
            nn.Rescale(0.5, 0.25),
            nn.Dense(6, 9, activation="relu"),
            nn.BatchNorm(9, momentum=None, activation="relu"),
            nn.Sigmoid(),
            nn.Dense(9, 8, bias=False),
            nn.BatchNorm(8, affine=False, running_var="biased"),
            nn.Residual([nn.BatchNorm(8), nn.Tanh(), nn.Residual(nn.Dense(8, 8)), nn.Dense(8, 8)]),
            nn.Dense(8, 3),
            seed=5,
        )
        for name, layer in model.leaves().items():
            layer.trainable = name not in frozen
        return model

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 6)).astype(np.float32), rng.integers(0, 3, 90)
    make().save(tmp_path / "model.safetensors")
    x.tofile(tmp_path / "x")
    y.astype(np.int64).tofile(tmp_path / "y")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYOPTIM_FORCE_ISA", native.instruction_set())
        out = run(programs / "train", tmp_path / "model.safetensors", tmp_path / "x", tmp_path / "y",
                  tmp_path / "result.safetensors")  # fmt: skip
    *epochs, allocations = out.splitlines()
    model = make()
    optimizer = po.AdamW(runs(model), lr=lambda step: 1e-2 / (1 + 0.1 * step), max_grad_norm=0.5)
    history = po.Trainer(model, nn.CrossEntropy(), optimizer).fit(
        x, y, epochs=3, batch_size=8, shuffle=False, verbose=False
    )
    measured = [tuple(map(float, line.split())) for line in epochs]
    assert measured == list(zip(history["loss"], history["accuracy"], strict=True))
    result = nn.Sequential.load(tmp_path / "result.safetensors")
    assert repr(result) == repr(model)
    assert list(result.parameters()) == list(model.parameters())
    for name, value in model.state_dict().items():
        assert np.array_equal(result.state_dict()[name], value), name
    assert int(allocations) == 0


def runs(model):
    """The parameters that learn, in pieces of the flat vector as long as can be."""
    pieces, begin, end = [], 0, 0
    for layer in model.leaves().values():
        if not layer.trainable:
            pieces.append(model.flat_parameters[begin:end])
            begin = end + layer.parameter_count()
        end += layer.parameter_count()
    return [piece for piece in [*pieces, model.flat_parameters[begin:end]] if piece.size]


def of_every_kind(frozen=()):
    """A model with every kind of layer that there is."""
    each = [*kinds.activations(), *map(kinds.layer, kinds.LAYERS)]
    model = nn.Sequential(
        nn.BatchNorm(2),
        nn.LayerNorm((2, 3)),
        nn.Flatten(),
        nn.Rescale(1 / 3, 0.25),
        nn.Dense(6, 8, activation="tanh"),
        nn.Dropout(0.3),
        *[nn.Residual([nn.Dense(8, 8), layer]) for layer in each],
        nn.GaussianNoise(0.1),
        nn.LayerNorm(8, eps=1e-3, affine=False),
        nn.Residual([nn.LayerNorm(8), nn.Residual([nn.Dropout(0.5), nn.Dense(8, 8, bias=False)])]),
        nn.Dense(8, 3),
        seed=3,
    )
    for name, layer in model.leaves().items():
        layer.trainable = name not in frozen
    return model


def kinds_in(layers):
    return {type(layer) for layer in layers}.union(*(kinds_in(layer.block) for layer in layers))


LOSSES = {
    **{type(loss).__name__: loss for loss in reversed(kinds.pointwise_losses())},  # with their defaults
    "labels": nn.CrossEntropy([0.5, 1.25, 2.0], label_smoothing=0.1),
    "CrossEntropy": nn.CrossEntropy([0.5, 1.25, 2.0], label_smoothing=0.1),
    "KLDiv": nn.KLDiv(temperature=1.5),
    "Huber": nn.Huber(0.75),
    "BinaryCrossEntropy": nn.BinaryCrossEntropy([0.5, 2.0, 3.0]),
}


def targets_of(name, examples):
    rng = np.random.default_rng(2)
    if name == "labels":
        return rng.integers(0, 3, examples)
    if name == "Hinge":
        return rng.choice([-1, 1], (examples, 3)).astype(np.float32)
    shares = rng.random((examples, 3)).astype(np.float32)
    return shares / shares.sum(axis=1, keepdims=True)


@needs_tools
@pytest.mark.parametrize("name", LOSSES)
def test_cpp_has_every_layer_and_loss(built, tmp_path, name):
    known, losses = native.compiled_kinds()
    frozen = ("0.", "8.block.0.") if name in ("labels", "Huber") else ()
    model, loss = of_every_kind(frozen), LOSSES[name]
    assert {kind.__name__ for kind in kinds_in(model.layers)} == set(known)
    assert {type(loss).__name__ for loss in LOSSES.values()} == set(losses)

    x = np.random.default_rng(1).normal(size=(60, 2, 3)).astype(np.float32)
    y = targets_of(name, len(x))
    model.save(tmp_path / "model.safetensors")
    x.tofile(tmp_path / "x")
    y.tofile(tmp_path / "y")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYOPTIM_FORCE_ISA", native.instruction_set())
        epochs = run(built["find_package"] / "kinds", tmp_path / "model.safetensors", tmp_path / "x",
                     tmp_path / "y", name, tmp_path / "outputs", tmp_path / "result.safetensors")  # fmt: skip
    trainer = po.Trainer(model, loss, po.Adam(runs(model)))
    outputs = np.fromfile(tmp_path / "outputs", np.float32).reshape(len(x), 3)
    assert np.array_equal(outputs, trainer.predict(x))
    history = trainer.fit(x, y, epochs=2, batch_size=8, shuffle=False, verbose=False, engine="native")
    measured = [tuple(map(float, line.split())) for line in epochs.splitlines()]
    assert measured == list(zip(history["loss"], history.get("accuracy", [0, 0]), strict=True))
    result = nn.Sequential.load(tmp_path / "result.safetensors")
    assert repr(result) == repr(model)
    assert list(result.parameters()) == list(model.parameters())
    for array, value in model.state_dict().items():
        assert np.array_equal(result.state_dict()[array], value), array
    folded, own = nn.Sequential.load(tmp_path / "result.safetensors.folded"), model.folded()
    assert repr(folded) == repr(own)
    assert len(own.parameters()) < len(model.parameters())
    for array, value in own.state_dict().items():
        assert np.array_equal(folded.state_dict()[array], value), array


@needs_tools
def test_python_loads_what_cpp_made(built, tmp_path):
    run(built["find_package"] / "kinds", tmp_path / "model.safetensors")
    block = [nn.LayerNorm(5), nn.GELU("tanh"), nn.Dropout(0.25)]
    expected = nn.Sequential(
        nn.Flatten(),
        nn.Rescale(0.1, 0.0),
        nn.Dense(4, 5, activation="tanh"),
        nn.BatchNorm(5, momentum=None, running_var="biased"),
        nn.LeakyReLU(0.25),
        nn.Residual(block),
        nn.GaussianNoise(0.5),
        nn.Dense(5, 3),
        nn.LogSoftmax(),
        dtype=np.float64,
    )
    model = nn.Sequential.load(tmp_path / "model.safetensors")
    assert repr(model) == repr(expected)
    assert [layer.trainable for layer in model.layers] == [i != 2 for i in range(9)]
    seeds = {int(layer.buffers["seed"]) for layer in model.leaves().values() if "seed" in layer.buffers}
    assert len(seeds) == 2


@needs_tools
def test_layers_have_the_same_defaults_in_both_languages(built, tmp_path):
    path = tmp_path / "model.safetensors"
    # Rescale is left out: its scale is 1/255 in Python, and 1 in C++ unless pyoptim::rescale() gives another.
    for name in set(native.compiled_kinds()[0]) - {"Rescale"}:
        try:
            expected = repr(getattr(nn, name)())
        except TypeError:  # an argument has no default
            continue
        run(built["find_package"] / "kinds", path, name)
        assert repr(nn.Sequential.load(path).layers[1]) == expected


@needs_tools
def test_cpp_updates_raw_pointers(programs):
    first, *errors = run(programs / "update").splitlines()
    p = np.array([1.0, -2.0, 3.0])
    optimizer = po.Adam(p, lr=0.1, weight_decay=0.01)
    for _ in range(5):
        optimizer.step(2 * p)
    assert [float(value) for value in first.split()] == list(p)
    assert errors[0] == "beta1 is 1, expected a number in [0, 1)"
    assert errors[1] == "momentum is -1, expected a finite number >= 0"
    assert errors[2] == "weight_decay is nan, expected a finite number >= 0"
    assert "labels[0] is 7, expected a class in [0, 1)" in errors[3]
    assert "layers[1] (Dense) has 4 inputs" in errors[4]


@needs_tools
def test_cpp_freezes_layers_and_blocks(programs):
    errors = run(programs / "layers").splitlines()
    assert errors[0] == "layer is 3, expected less than 3"
    assert "all layers are frozen" in errors[1]
    assert "layers[0.block.1] (Dense) has 3 inputs" in errors[2]
    assert "layers[1] (Residual) has a block that makes 3 values of 2, expected as many" in errors[3]
    assert "layers[0] (Residual) has an empty block" in errors[4]
    assert errors[5].startswith("n is 100000, expected between 1 and ")


@needs_tools
def test_cpp_refuses_descriptions_as_python_does(programs, tmp_path):
    model = nn.Sequential(nn.Dense(2, 3, activation="relu"), nn.Residual(nn.BatchNorm(3)), nn.Dense(3, 1))
    path = tmp_path / "model.safetensors"
    model.save(path)
    description, tensors = files.read(path, "pyoptim-model-1")
    wrong = {
        "activation": (1, "", [], False),
        "momentum": (-1, "x", []),
        "running_var": ("x", "", None),
        "trainable": (1, None),
    }
    for name, values in wrong.items():
        for value in values:
            layers = json.loads(json.dumps(description["layers"]))
            owner = layers[0] if name == "activation" else layers[1]["block"][0]
            owner[name] = value
            files.write(path, {**description, "layers": layers}, tensors)
            with pytest.raises(ValueError, match="does not describe a model"):
                nn.Sequential.load(path)
            assert f"no valid {name}" in run(programs / "layers", path), value
    for owner in (0, 1):
        layers = json.loads(json.dumps(description["layers"]))
        (layers[0] if owner == 0 else layers[1]["block"][0])["rank"] = 2
        files.write(path, {**description, "layers": layers}, tensors)
        with pytest.raises(ValueError, match="does not describe a model"):
            nn.Sequential.load(path)
        assert "has no argument named rank" in run(programs / "layers", path)
    for momentum in (None, 0, 1):
        description["layers"][1]["block"][0]["momentum"] = momentum
        files.write(path, description, tensors)
        assert nn.Sequential.load(path).layers[1].block[0].momentum == momentum
        assert run(programs / "layers", path) == "no error\n"
    del description["layers"][1]["block"][0]["momentum"]
    files.write(path, description, tensors)
    assert nn.Sequential.load(path).layers[1].block[0].momentum == 0.1
    assert run(programs / "layers", path) == "no error\n"


@needs_tools
def test_cpp_trains_by_losses_and_layers_of_ones_own(programs):
    assert run(programs / "forward") == ""


@needs_tools
def test_cpp_predictors_give_the_bits_of_the_network(programs, tmp_path):
    of_every_kind().save(tmp_path / "model.safetensors")
    assert run(programs / "predictor", tmp_path / "model.safetensors") == ""


@needs_tools
def test_cpp_measures_what_python_does(built):
    """tests/train/test_measures.py checks the same of Python."""
    assert run(built["find_package"] / "measures") == ""


@needs_tools
def test_cpp_refuses_the_bad_files_that_python_refuses(built, tmp_path):
    paths = hostile.write_corpus(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path, Path("/dev/zero"), Path("/dev/null"), tmp_path / "pipe", tmp_path / "missing"):
        paths[special.name] = special
    good = (tmp_path / "good.safetensors").read_bytes()
    for i in range(len(good)):
        paths[f"byte {i}"] = tmp_path / f"byte{i}"
        paths[f"byte {i}"].write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
    fine = [tmp_path / f"fine{i}" for i in range(len(hostile.FINE))]
    for each, make in zip(fine, hostile.FINE.values(), strict=True):
        each.write_bytes(make(good))

    def limit():  # what the files declare is more
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

    names = [*fine, *paths.values()]
    done = subprocess.run([built["find_package"] / "files", "load", *names], capture_output=True, text=True,
                          errors="replace", timeout=120, check=False, preexec_fn=limit)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[: len(fine)] == ["loaded"] * len(fine)
    for (name, path), line in zip(paths.items(), said[len(fine) :], strict=True):
        assert line.startswith(f"{path} cannot be loaded: "), name
    assert hostile.fuzz(150, 1, tmp_path, built["find_package"] / "files")[1] == []


@needs_tools
def test_cpp_saves_as_python_does(built, tmp_path):
    program = built["find_package"] / "files"
    model, target = tmp_path / "model", tmp_path / "other" / "target"
    (tmp_path / "other").mkdir()
    hostile.a_model().save(model)
    os.symlink("other/target", tmp_path / "link")

    def save(path):
        return run(program, "once", model, path)

    mask = os.umask(0o027)
    try:
        assert save(tmp_path / "link") == "saved\n"
    finally:
        os.umask(mask)
    assert (tmp_path / "link").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert np.array_equal(nn.Sequential.load(target).flat_parameters, hostile.a_model().flat_parameters)
    target.chmod(0o600)
    machine = files._machine() or "unknown0"
    own = target.parent / f".pyoptim-{machine}-0123456789abcdef.tmp"
    others = target.parent / ".pyoptim-other123-0123456789abcdef.tmp", target.parent / ".pyoptim-mine"
    for each in (own, *others):
        each.write_bytes(b"part")
    assert save(target) == "saved\n"
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(target.parent)) == sorted([target.name, *(each.name for each in others)])
    (tmp_path / "circle").symlink_to("circle")
    for wrong, why in {
        "null byte": "path is 'model' and more after a null byte",
        tmp_path / "circle": "cannot be written: ",
        tmp_path / "missing" / "model": "cannot be written: ",
        tmp_path: "cannot be written: it is no regular file",
        "/dev/null": "cannot be written: it is no regular file",
    }.items():
        assert why in save(wrong)


@needs_tools
def test_killed_cpp_writers_leave_a_whole_file_and_nothing_else(built, tmp_path):
    model = tmp_path / "model"
    kills.a_model().save(model)
    (tmp_path / "target").mkdir()
    start = functools.partial(kills.Program, built["find_package"] / "files", model)
    found, _ = kills.run(8, "model", tmp_path / "target", start)
    assert found == {"damaged": 0, "failed": 0, "left": 0}


@needs_tools
def test_c_api(programs, tmp_path):
    run(programs / "c_api", tmp_path / "model.safetensors")
    model = nn.Sequential.load(tmp_path / "model.safetensors")
    assert repr(model.layers[0]) == repr(nn.Dense(2, 8, activation="relu"))


@needs_tools
def test_the_c_api_works_in_float_and_in_double(programs, tmp_path):
    run(programs / "c_typed", tmp_path / "model.safetensors")


@needs_tools
def test_random_calls_of_the_c_api_succeed_or_say_why_not(built, tmp_path):
    """.ci/sanitize makes more of them, and looks at the memory."""
    succeeded, failed = map(int, run(built["find_package"] / "fuzz", "1", "2000", tmp_path).split())
    assert succeeded + failed == 2000
    assert min(succeeded, failed) > 500


@needs_tools
@pytest.mark.parametrize(
    "source", sorted((consumers.SOURCE / "csrc" / "examples").glob("*.c*")), ids=lambda p: p.stem
)
def test_examples_do_what_they_say(folder, source, tmp_path):
    made = [tmp_path / "file"] if source.suffix == ".c" else [tmp_path] if source.stem == "resume" else []
    assert run(folder / "found" / "examples" / f"example_{source.stem}", *made)


@needs_tools
def test_projects_of_c_alone_use_the_library(folder, tmp_path):
    assert run(folder / "c_only" / "app") == ""
    # Built along with one, it is the same objects: what links them is all that can differ.
    run("cmake", "-S", consumers.C_ONLY, "-B", tmp_path, "-G", "Unix Makefiles",
        f"-DPYOPTIM_SOURCE={consumers.SOURCE}", "-DPYOPTIM_ISAS=baseline")  # fmt: skip
    linked = (tmp_path / "CMakeFiles" / "app.dir" / "link.txt").read_text("utf-8")
    assert "libpyoptim.a -l" in linked


@needs_tools
@pytest.mark.skipif(not shutil.which("pkg-config"), reason="needs pkg-config")
def test_pkg_config_finds_the_library_wherever_it_was_moved(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "prefix", tmp_path / "moved")
    (pc,) = tmp_path.rglob("pyoptim.pc")
    monkeypatch.setenv("PKG_CONFIG_PATH", str(pc.parent))
    flags = run("pkg-config", "--cflags", "--libs", "pyoptim").split()
    compiler = shutil.which("cc") or shutil.which("gcc")
    source, program = consumers.C_ONLY / "app.c", tmp_path / "app"
    run(compiler, "-std=c89", "-Wpedantic", "-Werror", source, "-o", program, *flags)
    assert run(program) == ""


@needs_tools
@pytest.mark.skipif(not shutil.which("nm"), reason="needs binutils")
def test_plugins_export_nothing_of_the_library_in_them(programs):
    (plugin,) = programs.glob("*plugin*.so")
    exported = run("nm", "-D", "--defined-only", plugin)
    assert "plugin_predict" in exported
    # Templates of std:: have the visibility of namespace std, whatever they are made for.
    assert not re.findall(r" (?:_Z\w{0,2}N?K?7pyoptim|pyoptim_)\w*", exported)


def test_an_install_says_where_its_cpp_files_are(run_pyoptim):
    try:
        include, cmake = po.include_dir(), po.cmake_dir()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert Path(include, "pyoptim", "network.hpp").is_file()
    assert Path(cmake, "pyoptimConfig.cmake").is_file()
    assert Path(run_pyoptim("--cmake-dir").stdout.strip()) == Path(cmake)
    assert {path.name for path in Path(include, "pyoptim").iterdir()} == {
        "custom_layer.hpp", "export.hpp", "network.hpp", "optimizer.hpp", "predictor.hpp", "pyoptim.h",
        "schedules.hpp",
    }  # fmt: skip
    sources = Path(po.__file__).parent / "backends" / "gpu" / "csrc"  # for CuPy
    rules = (sources / "formulas" / "rules.hpp").read_text("utf-8")
    listed = re.search(r"define PYOPTIM_FOR_EACH_RULE\(X\)(.*?)\n\n", rules + "\n\n", re.S)
    assert listed is not None
    assert set(re.findall(r"X\((\w+),", listed[1])) == set(native.rules())
