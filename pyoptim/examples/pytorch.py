"""PyTorch: its model, gradients and scheduler, with an optimizer of pyoptim that it takes for its own.

The tensors are updated in place, without a copy.
"""

# %% A model of PyTorch's.
import torch

import pyoptim as po

torch.manual_seed(0)
torch.set_num_threads(1)  # a network so small gains nothing from more
data = po.datasets.load("digits", flatten=True, normalize=True)
x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

# %% The optimizer is a `torch.optim.Optimizer`; so is what schedules it PyTorch's.
optimizer = po.torch.Optimizer(model.parameters(), po.Adam, lr=0.01)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
for _ in range(20):
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
    scheduler.step()

# %% Its state is in the form of PyTorch's Adam, which can take over from here.
theirs = torch.optim.Adam(model.parameters())
theirs.load_state_dict(optimizer.state_dict())
right = model(torch.from_numpy(data.x_test)).argmax(dim=1) == torch.from_numpy(data.y_test)
accuracy = float(right.float().mean())
step = theirs.state_dict()["state"][0]["step"]
print(f"test accuracy {accuracy:.1%}; PyTorch's Adam goes on from step {step:g}")
