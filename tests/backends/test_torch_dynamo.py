"""torch's compiler is imported only by programs that use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

SCRIPT = """
import sys, torch
from modularml.backends.torch import adapter
from modularml.backends.torch_fused_optimizers import direct_step

def trained(cls, step_of, make, hooked=False):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    optimizer = make(cls, list(net.parameters()), {"lr": 0.1})
    calls = []
    if hooked:
        optimizer.register_step_pre_hook(lambda *facts: calls.append(1))
    step = step_of(optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(4, 3)).square().mean().backward()
        step()
        schedule.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(calls) == (3 if hooked else 0)
    return net.weight.detach(), optimizer.state_dict()

def plain(cls, params, options):
    fused = {"fused": True} if cls in (torch.optim.Adam, torch.optim.AdamW) else {}
    return cls(params, **options, **fused)

optim = torch.optim
classes = (optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop, optim.Adagrad, optim.NAdam)
classes += (optim.RAdam, optim.Adamax, optim.Adadelta, optim.Rprop, optim.ASGD)
ours = [trained(cls, direct_step, adapter.make_optimizer) for cls in classes]
assert "torch._dynamo" not in sys.modules
ours.append(trained(torch.optim.Adam, direct_step, adapter.make_optimizer, hooked=True))
for cls, (weights, state) in zip((*classes, torch.optim.Adam), ours):
    wanted, wanted_state = trained(cls, lambda o: lambda: o.step(), plain)
    assert torch.equal(weights, wanted)
    assert repr(state["state"]) == repr(wanted_state["state"])
    assert state["param_groups"][0]["lr"] == wanted_state["param_groups"][0]["lr"] == 0.1 * 0.5**3
assert "torch._dynamo" in sys.modules  # by torch's own step
hidden = getattr(torch.optim.Optimizer.zero_grad.__wrapped__, "__dynamo_disable")
assert hidden._torchdynamo_disable  # hidden from the compiler again
"""


@pytest.mark.private("the import of torch's compiler is put off")
def test_optimizers_import_the_compiler_only_where_it_is_used():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
