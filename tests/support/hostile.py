"""Files that must be refused, made of one that is fine, and a fuzzer of files.

``python tests/support/hostile.py --rounds 20000 [--program PATH]`` changes valid models, optimizers and
trainings at random. Reading one may end with a ValueError that names the file or with what the file says, and
with nothing else. PATH is the program tests/cpp/programs/files.cpp: it must take the models that Python
takes, and refuse the others.
"""

import argparse
import copy
import hashlib
import json
import random
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import pyoptim as po
from pyoptim import nn

ZEROS = "0" * 64


class Parts:
    """A file in parts: the JSON of its header, that of its description (or None), and its data."""

    def __init__(self, content):
        end = 8 + int.from_bytes(content[:8], "little")
        self.header, self.data = json.loads(content[8:end]), content[end:]
        self.description = json.loads(self.header["__metadata__"]["pyoptim"])
        self.description.pop("checksum", None)

    def joined(self, checksum=True):
        """The file, with the right checksum or, as files used to be, without."""
        header, described = dict(self.header), self.description
        header.pop("__metadata__", None)
        if isinstance(described, dict) and checksum:
            described = {"checksum": ZEROS, **described}
        if described is not None:
            words = described if isinstance(described, str) else json.dumps(described)
            header = {"__metadata__": {"pyoptim": words}, **header}
        return signed(packed(json.dumps(header).encode(), self.data))


def packed(header, data):
    return len(header).to_bytes(8, "little") + header + data


def signed(content):
    """The file with its checksum where 64 zeros stand for it."""
    return content.replace(ZEROS.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def a_model(seed=0):
    block = [nn.LayerNorm(5), nn.Dropout(0.25), nn.Dense(5, 5, activation="relu")]
    return nn.Sequential(nn.Dense(4, 5), nn.BatchNorm(5), nn.Residual(block), nn.LeakyReLU(0.1),
                         nn.Dense(5, 3), seed=seed)  # fmt: skip


def of_parts(change, checksum=True):
    """A bad file by a function that changes the parts of a good one; it may return the parts of another."""

    def make(good):
        parts = Parts(good)
        return (change(parts) or parts).joined(checksum)

    return make


def entry(name, **values):
    return of_parts(lambda p: p.header[name].update(values))


def layer(index, **values):
    return of_parts(lambda p: p.description["layers"][index].update(values))


def described(**values):
    return of_parts(lambda p: p.description.update(values))


def text(old, new):
    """A change of the header as text, to what no JSON library would write; without a checksum."""

    def make(good):
        content = Parts(good).joined(checksum=False)
        end = 8 + int.from_bytes(content[:8], "little")
        assert old in content[:end], old
        return packed(content[8:end].replace(old, new, 1), content[end:])

    return make


def noted(value):
    """A header whose metadata hold this text (as JSON has it) beside the description."""
    return text(b'"__metadata__": {', b'"__metadata__": {"note": "%b", ' % value)


def in_utf16(good):
    end = 8 + int.from_bytes(good[:8], "little")
    return packed(good[8:end].decode().encode("utf-16-le"), good[end:])


def swapped(p):
    a, b = p.header["0.bias"], p.header["4.bias"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def shared(p):
    p.header["2.block.0.weight"]["data_offsets"] = p.header["2.block.0.bias"]["data_offsets"]


def gap(p):
    last = max(p.header, key=lambda name: p.header[name].get("data_offsets", [0, 0])[1])
    p.header[last]["data_offsets"] = [n + 8 for n in p.header[last]["data_offsets"]]
    p.data += bytes(8)


def bomb(features):
    """Few data, whose description lists layers that need some gigabytes."""

    def change(p):
        layers = [{"type": "BatchNorm", "features": features, "affine": False} for _ in range(4000)]
        p.description["layers"] += layers
        p.data += bytes(4 * features)
        end = max(e["data_offsets"][1] for name, e in p.header.items() if name != "__metadata__")
        offsets = [end, end + 4 * features]
        p.header["5.running_mean"] = {"dtype": "F32", "shape": [features], "data_offsets": offsets}

    return of_parts(change)


def wide(p):
    p.description["layers"] += [{"type": "Dense", "in_features": 2**24, "out_features": 2**24}] * 70_000


def begun(**values):
    """A description that begins with these values, and has no checksum else."""
    return of_parts(lambda p: setattr(p, "description", {**values, **p.description}), checksum=False)


def digits_of(good):
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    return json.loads(header["__metadata__"]["pyoptim"])["checksum"].encode()


AN_EMPTY_ARRAY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
A_DENSE = {"type": "Dense", "in_features": 3, "out_features": 3}

CORPUS = {
    "empty": lambda good: b"",
    "too short for a length": lambda good: good[:7],
    "only a length": lambda good: good[:8],
    "no header": lambda good: bytes(8),
    "length beyond the end": lambda good: (2**40).to_bytes(8, "little") + good[8:],
    "length of 2^64 - 1": lambda good: b"\xff" * 8 + good[8:],
    "length 1 more": lambda good: (int.from_bytes(good[:8], "little") + 1).to_bytes(8, "little") + good[8:],
    "cut by a byte": lambda good: good[:-1],
    "cut in half": lambda good: good[: len(good) // 2],
    "a byte more": lambda good: good + b"\0",
    "twice": lambda good: good + good,
    "header is a list": lambda good: packed(b"[1, 2]", b""),
    "header begins with a space": lambda good: packed(b" " + good[8 : 8 + int.from_bytes(good[:8], "little")],
                                                      good[8 + int.from_bytes(good[:8], "little") :]),
    "header is no JSON": lambda good: packed(b"{]", b""),
    "header nests deep": lambda good: packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "no metadata": of_parts(lambda p: setattr(p, "description", None)),
    "metadata of a number": lambda good: packed(b'{"__metadata__": {"pyoptim": 3}}', b""),
    "metadata of another": lambda good: packed(b'{"__metadata__": {"other": "{}"}}', b""),
    "description is no JSON": of_parts(lambda p: setattr(p, "description", "{")),
    "description is a list": of_parts(lambda p: setattr(p, "description", [1])),
    "description is empty": of_parts(lambda p: setattr(p, "description", {}), checksum=False),
    "description nests deep": of_parts(lambda p: setattr(p, "description", "[" * 50_000 + "]" * 50_000)),
    "another format": described(format="pyoptim-model-9"),
    "another kind": described(format="pyoptim-optimizer-1"),
    "another dtype": described(dtype="float64"),
    "no dtype": of_parts(lambda p: p.description.pop("dtype") and None),
    "half offsets": entry("0.bias", data_offsets=[0.5, 20.5]),
    "offsets with a point": text(b'"data_offsets": [0,', b'"data_offsets": [0.0,'),
    "offsets with an exponent": text(b'"data_offsets": [0,', b'"data_offsets": [0e0,'),
    "negative offsets": entry("0.bias", data_offsets=[-20, 0]),
    "huge offsets": entry("0.bias", data_offsets=[2**64, 2**64 + 20]),
    "three offsets": entry("0.bias", data_offsets=[0, 20, 40]),
    "offsets in a text": entry("0.bias", data_offsets="02"),
    "swapped offsets of other lengths": of_parts(swapped),
    "shared offsets": of_parts(shared),
    "a gap": of_parts(gap),
    "unknown dtype": entry("0.bias", dtype="F31"),
    "dtype of a number": entry("0.bias", dtype=32),
    "integers for floats": entry("0.bias", dtype="I32"),
    "wider dtype": entry("0.bias", dtype="F64"),
    "shape with a point": text(b'"shape": [5,', b'"shape": [5.0,'),
    "half shape": entry("0.weight", shape=[2.5, 8]),
    "negative shape": entry("0.weight", shape=[-5, -4]),
    "transposed shape": entry("0.weight", shape=[4, 5]),
    "shape that overflows": entry("0.weight", shape=[2**62, 2**62]),
    "shape that wraps to the right size": entry("0.weight", shape=[2**62, 16, 5, 4]),
    "shape of 10^400": entry("0.weight", shape=[10**400]),
    "no shape": of_parts(lambda p: p.header["0.weight"].pop("shape") and None),
    "an array is no object": of_parts(lambda p: p.header.update({"0.bias": 3})),
    "an array of another name": of_parts(lambda p: p.header.update({"9.bias": p.header.pop("0.bias")})),
    "an array twice": text(b'"0.bias":', b'"0.bias": %b, "0.bias":' % json.dumps(AN_EMPTY_ARRAY).encode()),
    "an empty array more": of_parts(lambda p: p.header.update({"9.bias": AN_EMPTY_ARRAY})),
    "1.5 inputs": layer(0, in_features=1.5),
    "inputs with a point": layer(0, in_features=4.0),
    "inputs with an exponent": text(b'in_features\\": 4', b'in_features\\": 4e0'),
    "inputs in a text": layer(0, in_features="4"),
    "inputs are true": layer(0, in_features=True),
    "inputs are a list": layer(0, in_features=[4]),
    "no inputs": layer(0, in_features=0),
    "negative inputs": layer(0, in_features=-4),
    "2^64 + 4 inputs": layer(0, in_features=2**64 + 4),
    "inputs of 10^400": layer(0, in_features=10**400),
    "inputs missing": of_parts(lambda p: p.description["layers"][0].pop("in_features") and None),
    "an unknown argument": layer(0, rank=2),
    "an argument that files do not have": layer(0, init="he"),
    "an argument twice": text(b'\\"in_features\\": 4', b'\\"in_features\\": 3, \\"in_features\\": 4'),
    "a flag of 1": layer(0, bias=1),
    "a flag in a text": layer(1, affine="yes"),
    "trainable is 1": layer(0, trainable=1),
    "eps in a text": layer(1, eps="x"),
    "eps is true": layer(1, eps=True),
    "eps is NaN": text(b'\\"eps\\": 1e-05', b'\\"eps\\": NaN'),
    "eps is infinite": text(b'\\"eps\\": 1e-05', b'\\"eps\\": 1e999'),
    "negative eps": layer(1, eps=-1e-5),
    "a number with a leading zero": text(b'in_features\\": 4', b'in_features\\": 04'),
    "a number with a plus": text(b'in_features\\": 4', b'in_features\\": +4'),
    "a comma too many": text(b'\\"in_features\\": 4,', b'\\"in_features\\": 4,,'),
    "a control character": text(b'\\"Dense\\"', b'\\"De\\nnse\\"'),
    "an escape of -1": text(b'"0.bias"', b'"0.bi\\u-061s"'),
    "an escape of 0x61": text(b'"0.bias"', b'"0.bi\\u0x61s"'),
    "an escape of 3 digits": text(b'"0.bias"', b'"0.bi\\u061s"'),
    "an escape of no letter": text(b'"0.bias"', b'"0.bi\\as"'),
    "half a surrogate pair": noted(b"\\ud83d"),
    "surrogates in the wrong order": noted(b"\\ude00\\ud83d"),
    "no UTF-8": noted(b"\xff"),
    "UTF-8 that is cut off": noted(b"\xe2\x82"),
    "a letter in two bytes": noted(b"\xc1\xa1"),
    "half a surrogate pair in UTF-8": noted(b"\xed\xa0\x80"),
    "a character beyond the last": noted(b"\xf4\x90\x80\x80"),
    "a header of 16 bits a character": in_utf16,
    "an unknown layer": layer(0, type="Conv2d"),
    "a private layer": layer(0, type="_Affine"),
    "a layer of no type": of_parts(lambda p: p.description["layers"][0].pop("type") and None),
    "a layer is a number": of_parts(lambda p: p.description["layers"].insert(0, 3)),
    "layers are a number": described(layers=3),
    "no layers": described(layers=[]),
    "layers missing": of_parts(lambda p: p.description.pop("layers") and None),
    "a block of no layers": layer(2, block=[]),
    "a block is missing": of_parts(lambda p: p.description["layers"][2].pop("block") and None),
    "a block where there is none": layer(0, block=[{"type": "ReLU"}]),
    "a layer more": of_parts(lambda p: p.description["layers"].append(A_DENSE)),
    "a layer less": of_parts(lambda p: p.description["layers"].pop() and None),
    "layers that do not follow each other": layer(4, in_features=3, out_features=5),
    "4,000 normalisations of 2^18 features": bomb(2**18),
    "70,000 layers of 2^48 weights": of_parts(wide),
    "a layer of 2^60 weights": layer(0, in_features=2**30, out_features=2**30),
    "normalisation of 2^62 features": layer(1, features=2**62),
    "a checksum of zeros": lambda good: good.replace(digits_of(good), ZEROS.encode(), 1),
    "a checksum in capitals": lambda good: good.replace(digits_of(good), digits_of(good).upper(), 1),
    "a short checksum": begun(checksum="0" * 32),
    "a checksum of a number": begun(checksum=3),
    "a checksum with a damaged name": lambda good: good.replace(b'\\"checksum\\"', b'\\"checksun\\"', 1),
    "a checksum that is not first": begun(format="pyoptim-model-1", checksum=ZEROS),
    "a description that begins with another word": begun(dtype="float32"),
}  # fmt: skip


# Files that are written otherwise than ours, and fine.
FINE = {
    "as it is": lambda good: good,
    "without a checksum": lambda good: Parts(good).joined(checksum=False),
    "escaped letters": text(b'"0.bias"', b'"0.b\\u0069\\u0061s"'),
    "escaped controls": noted(b'\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f'),
    "escaped characters": noted(b"\\u00e9\\u20AC\\ud83d\\ude00"),
    "UTF-8": noted("\u007fé€\ud7ff\ue000😀\U0010ffff".encode()),
    "numbers in other words": text(b'\\"eps\\": 1e-05', b'\\"eps\\": 0.0000100E+0'),
}  # fmt: skip


def write_corpus(folder):
    """Write a good file, and each bad one by the number of its name; returns their paths by name."""
    a_model().save(folder / "good.safetensors")
    good = (folder / "good.safetensors").read_bytes()
    paths = {}
    for i, (name, make) in enumerate(CORPUS.items()):
        paths[name] = folder / f"bad{i}.safetensors"
        paths[name].write_bytes(make(good))
        assert paths[name].read_bytes() != good, name
    return paths


# ---- the fuzzer ----------------------------------------------------------------------------------------

VALUES = [0, 1, -1, 4, 5, 1.5, 5.0, 2**31, 2**53 + 1, 2**64, 10**400, 1e308, -0.0, "", "x", "0" * 64, "F32",
          None, True, False, [], {}, [1], [0, 20], {"a": 1}, "relu", "Dense", {"type": "ReLU"}]  # fmt: skip
X, Y = np.linspace(-1, 1, 32).astype(np.float32).reshape(8, 4), np.arange(8) % 3


def an_optimizer():
    return po.Adam([np.ones((3, 2), np.float32), np.zeros(5, np.float32)], lr=po.schedules.Cosine(0.1, 5))


def a_training(path):
    model = a_model()
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), momentum=0.9), seed=0)
    trainer.fit(X, Y, epochs=2, batch_size=4, checkpoint=path, verbose=False,
                callbacks=[po.callbacks.EarlyStopping("loss", restore_best_weights=True)])  # fmt: skip


READERS = {
    "model": nn.Sequential.load,
    "optimizer": lambda path: an_optimizer().load(path),
    "training": a_training,
}


def good_files(folder):
    """The content of a good file of each kind."""
    a_model().save(folder / "model")
    optimizer = an_optimizer()
    optimizer.step([np.ones((3, 2), np.float32), np.ones(5, np.float32)])
    optimizer.save(folder / "optimizer")
    a_training(folder / "training")
    return {kind: (folder / kind).read_bytes() for kind in READERS}


def changed_bytes(content, rng):
    """The file with some bytes flipped, cut out, put in or repeated."""
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    b = min(b, a + rng.choice([1, 8, 100, len(content)]))
    kind = rng.randrange(4)
    if kind == 0:
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 5])):
            flipped[rng.randrange(len(content))] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
        return bytes(flipped)
    if kind == 1:
        return content[:a] + content[b:]
    return content[:a] + (rng.randbytes(b - a) if kind == 2 else content[a:b]) + content[a:]


def changed_json(tree, rng):
    """The JSON with one of its values, or a name, exchanged."""
    tree = copy.deepcopy(tree)
    places = []

    def walk(node):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(tree)
    node, key = rng.choice(places)
    other, of_other = rng.choice(places)
    kind = rng.randrange(6)
    if kind < 3:
        node[key] = rng.choice(VALUES)
    elif kind == 3:
        node[key] = copy.deepcopy(other[of_other])
    elif kind == 4:
        del node[key]
    elif isinstance(node, list):
        node.insert(key, rng.choice(VALUES))
    else:
        node[rng.choice(["x", *tree])] = node.pop(key)
    return tree


def changed(content, rng):
    """A file made of a good one, and whether it must be refused whatever it says."""
    if rng.random() < 0.3:
        made = changed_bytes(content, rng)
        return made, made != content
    parts = Parts(content)
    if rng.random() < 0.4:
        parts.header = changed_json(parts.header, rng)
    else:
        parts.description = changed_json(parts.description, rng)
    if rng.random() < 0.1:
        parts.data = parts.data[: rng.randrange(len(parts.data))]
    return parts.joined(checksum=rng.random() < 0.5), False


def outcome(kind, path):
    """Whether a file is taken, and what is wrong with how it was read."""
    began = time.monotonic()
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the checkpoint was saved by")  # a number of ranks that may be
            READERS[kind](path)
        taken, wrong = True, ""
    except ValueError as error:
        taken, wrong = False, "" if str(path) in str(error) else f"does not name the file: {error}"
    except BaseException as error:
        taken, wrong = False, f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    return taken, wrong or (f"took {seconds:.0f} s" if seconds > 10 else "")


def loads(program, paths):
    """What the C++ program says of each file: "loaded" or an error."""
    command = [program, "load", *paths]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def fuzz(rounds, seed, folder, program=None):
    """Read so many changed files; returns how many were taken, and a line for each that was read wrongly."""
    rng, good = random.Random(seed), good_files(folder)
    taken, wrong, waiting = 0, [], {}
    for i in range(rounds):
        kind = rng.choice(["model", "model", "model", "optimizer", "training"])
        content, is_damaged = changed(good[kind], rng)
        path = folder / f"changed{i}"
        path.write_bytes(content)
        accepted, problem = outcome(kind, path)
        taken += accepted
        if accepted and is_damaged:
            problem = "was taken, though damaged"
        if problem:
            wrong.append(f"{path} ({kind}): {problem}")
        elif kind == "model" and program is not None:
            path.write_bytes(content)
            waiting[path] = accepted
        else:
            path.unlink()
        if waiting and (len(waiting) == 200 or i == rounds - 1):
            for (each, by_python), said in zip(waiting.items(), loads(program, waiting), strict=True):
                if by_python is not (said == "loaded"):
                    wrong.append(f"{each}: {'taken' if by_python else 'refused'} by Python, C++: {said}")
                else:
                    each.unlink()
            waiting = {}
    return taken, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--program")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    taken, wrong = fuzz(options.rounds, options.seed, folder, options.program)
    print("\n".join(wrong))
    print(f"{options.rounds} files, {taken} of them taken, {len(wrong)} read wrongly; these are in {folder}")


if __name__ == "__main__":
    main()
