"""``pyoptim train`` saves no model that is worth nothing."""

import pytest

from pyoptim import cli


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where it computes
def test_a_diverged_training_leaves_the_file_of_a_good_model(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    command = ["train", "digits", "--epochs", "1", "--hidden", "8", "--optimizer", "sgd", "--save", str(path)]
    assert cli.main(command) == 0
    good = path.read_bytes()
    assert cli.main([*command, "--lr", "1e30"]) == 1
    assert path.read_bytes() == good
    assert "the training diverged" in capsys.readouterr().err
