"""A search for hyperparameters by Optuna, which ends trainings early that do not promise well."""

# %% A callback tells Optuna what each epoch measured, and asks whether to go on.
from typing import Any

import optuna

import pyoptim as po
from pyoptim import nn

optuna.logging.set_verbosity(optuna.logging.WARNING)
data = po.datasets.load("digits", flatten=True, normalize=True)


class Report(po.callbacks.Callback):
    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        self.trial.report(logs["val_accuracy"], epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


# %% One training: its learning rate and its width are what is searched for.
def objective(trial: Any) -> float:
    rate = trial.suggest_float("rate", 1e-5, 1.0, log=True)
    width = trial.suggest_int("width", 8, 128, log=True)
    model = nn.Sequential(nn.Dense(64, width, activation="relu"), nn.Dense(width, 10), seed=0)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), lr=rate), seed=0)
    options: Any = {"epochs": 8, "validation_split": 0.2, "callbacks": [Report(trial)], "verbose": False}
    return trainer.fit(data.x_train, data.y_train, **options)["val_accuracy"][-1]


# %% Twenty of them; the sampler's seed makes the search the same each time.
pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
sampler = optuna.samplers.TPESampler(seed=0)
study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
study.optimize(objective, n_trials=20)
accuracy = study.best_value
pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
print(
    f"{accuracy:.1%} of the validation data, with {study.best_params}; {pruned} of 20 trainings ended early"
)
