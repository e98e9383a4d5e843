"""Load a checkpoint into a module of your own: python into_module.py PATH

The module is built on the meta device, so it has no memory, and no random numbers are drawn for nothing. heft maps what
has the module's dtype, casts the rest, and calls the initializers of modules for what the checkpoint does not have.
"""

import sys

import torch
from torch import nn

import heft


class Classifier(nn.Module):
    """The checkpoint has the body; the head is new."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


def main() -> None:
    with torch.device("meta"):
        model = Classifier()

    report = heft.load_into(model, sys.argv[1], strict=False)  # strict=True: a missing name is an error
    print("missing:", *report.missing_keys)
    print("unexpected:", *report.unexpected_keys)
    print("initialized:", *report.initialized)

    # an ordinary module now: a step of training changes its memory, and never the file
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(torch.ones(3, 16)).square().mean()
    loss.backward()
    optimizer.step()
    print("trained on", *{str(parameter.device) for parameter in model.parameters()})


if __name__ == "__main__":
    main()
