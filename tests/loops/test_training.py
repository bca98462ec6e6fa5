"""`epoch_stream` against loops written by hand."""

import copy
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
nn = torch.nn

from modularml.errors import (  # noqa: E402
    ConfigError,
    DataError,
    LossError,
    ModularMLError,
    ShapeError,
)
from modularml.loops import training  # noqa: E402
from modularml.streams import (  # noqa: E402
    augment,
    collect,
    epoch_stream,
    iter_batches,
    pipe,
    print_keys,
    take,
    validation_loss,
)


def problem(n=50):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 4, generator=generator)
    return x, (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]))[:, None] + 0.1


def network(dropout=0.0):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def by_hand(x, y, model, optimizer, *, batch_size, n_epochs, generator=None):
    """A training loop as people write it."""
    loss_fn, losses = nn.MSELoss(), []
    for _ in range(n_epochs):
        model.train()
        total = 0.0
        order = torch.arange(len(x))
        if generator is not None:
            order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            optimizer.zero_grad()
            loss = loss_fn(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(x))
    return losses


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "adam fused": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
    "adam plain": lambda params: torch.optim.Adam(params, lr=0.01, fused=False),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05),
}
EXACT = {"adam fused", "adam plain", "adagrad"}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_equals_a_loop_written_by_hand(name, shuffle):
    x, y = problem()
    mine, theirs = network(0.2), network(0.2)
    seeds = [torch.Generator().manual_seed(1) if shuffle else None for _ in range(2)]
    torch.manual_seed(9)
    expected = by_hand(
        x,
        y,
        theirs,
        OPTIMIZERS[name](theirs.parameters()),
        batch_size=8,
        n_epochs=3,
        generator=seeds[0],
    )
    torch.manual_seed(9)
    optimizer = OPTIMIZERS[name](mine.parameters())
    stream = epoch_stream(
        (x, y), mine, optimizer, nn.MSELoss(), batch_size=8, shuffle=shuffle, generator=seeds[1]
    )
    losses = [event["train_loss"] for event in islice(stream, 3)]
    tolerance = {"rtol": 0, "atol": 0} if name in EXACT else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(losses, expected, **tolerance)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_an_epoch_of_several_chunks_has_one_mean(monkeypatch):
    x, y = problem()
    losses = []
    for batches_a_chunk in (1, 2, 1024):
        monkeypatch.setattr(training, "CHUNK_BATCHES", batches_a_chunk)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        generator = torch.Generator().manual_seed(1)
        stream = epoch_stream(
            (x, y), model, optimizer, nn.MSELoss(), batch_size=8, generator=generator
        )
        losses.append([event["train_loss"] for event in islice(stream, 2)])
    assert losses[0] == pytest.approx(losses[2], rel=1e-12)
    assert losses[1] == pytest.approx(losses[2], rel=1e-12)


def test_a_loss_of_one_element_will_do():
    x, y = problem()
    found = []
    for loss_fn in (nn.MSELoss(), lambda out, labels: nn.MSELoss()(out, labels).reshape(1)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        stream = epoch_stream((x, y), model, optimizer, loss_fn, batch_size=50, shuffle=False)
        found.append([event["train_loss"] for event in islice(stream, 2)])
    assert found[0] == found[1]


def test_going_on_from_a_saved_state_equals_never_stopping():
    x, y = problem()

    def stream(model, optimizer, generator, done=0):
        return epoch_stream(
            (x, y),
            model,
            optimizer,
            nn.MSELoss(),
            batch_size=8,
            generator=generator,
            step_offset=done,
        )

    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(1)
    whole, states = [], []
    for event in islice(stream(model, optimizer, generator), 4):
        whole.append((event["step"], event["train_loss"]))
        state = (model.state_dict(), optimizer.state_dict(), generator.get_state())
        states.append(copy.deepcopy(state))
    for done, (weights, moments, seed) in enumerate(states, 1):
        model = network()
        model.load_state_dict(weights)
        optimizer = torch.optim.Adam(model.parameters())
        optimizer.load_state_dict(moments)
        generator = torch.Generator()
        generator.set_state(seed)
        rest = islice(stream(model, optimizer, generator, done), 4 - done)
        assert whole[:done] + [(e["step"], e["train_loss"]) for e in rest] == whole


def test_events():
    x, y = problem()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    stream = epoch_stream(
        (x, y), model, optimizer, nn.MSELoss(), batch_size=7, extra={"fold": 2}, step_offset=10
    )
    first, second = next(stream), next(stream)
    assert list(first) == ["step", "train_loss", "model", "fold"]
    assert (first["step"], second["step"], first["fold"]) == (11, 12, 2)
    assert first["model"] is model
    assert isinstance(first["train_loss"], float)
    expected = nn.MSELoss()(model(x), y).item()  # nothing moves, so each epoch has this loss
    assert first["train_loss"] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_trained_before_somebody_asks():
    x, y = problem()
    model = network()
    before = [p.clone() for p in model.parameters()]
    stream = epoch_stream((x, y), model, torch.optim.SGD(model.parameters(), lr=1), nn.MSELoss())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    next(stream)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_several_inputs_and_no_label():
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, a, b):
            return self.weight * a - b

    a, b = torch.ones(4), torch.full((4,), 3.0)
    for data, last_label, loss_fn in (
        ((a, b), False, lambda out: out.square().mean()),
        ((a, b, torch.zeros(4)), True, nn.MSELoss()),
    ):
        model = Distance()
        stream = epoch_stream(
            data,
            model,
            torch.optim.SGD(model.parameters(), lr=0.5),
            loss_fn,
            batch_size=4,
            last_label=last_label,
        )
        assert [next(stream)["train_loss"], next(stream)["train_loss"]] == [9.0, 0.0]


def test_trains_where_gradients_are_switched_off():
    x, y = problem()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stream = epoch_stream((x, y), model, optimizer, nn.MSELoss(), batch_size=10)
    with torch.no_grad():
        first = next(stream)["train_loss"]
        assert next(stream)["train_loss"] < first
        assert not torch.is_grad_enabled()


def test_a_schedule_can_be_ticked():
    x, y = problem()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    stream = epoch_stream((x, y), model, optimizer, nn.MSELoss(), batch_size=10)
    rates = []
    for _ in islice(stream, 3):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert rates == pytest.approx([0.1, 0.05, 0.025])


def test_a_loss_that_is_nan_is_an_event():
    x, y = problem()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    (*_, last) = islice(epoch_stream((x, y), model, optimizer, nn.MSELoss()), 2)
    assert last["train_loss"] != last["train_loss"]


# ------------------------------------------------------------------------------------ batches


@given(st.integers(1, 40), st.integers(1, 45), st.booleans(), st.integers(1, 200))
def test_batches_are_the_rows_cut_in_order(n, batch_size, shuffle, chunk_bytes):
    x, y = torch.arange(2 * n).reshape(n, 2), torch.arange(n)
    seeds = [torch.Generator().manual_seed(n) for _ in range(2)]
    order = torch.randperm(n, generator=seeds[0]) if shuffle else torch.arange(n)
    before, training.CHUNK_BYTES = training.CHUNK_BYTES, chunk_bytes
    try:
        batches = list(
            iter_batches(x, y, batch_size=batch_size, shuffle=shuffle, generator=seeds[1])
        )
    finally:
        training.CHUNK_BYTES = before
    expected = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    assert len(batches) == len(expected)
    for (x_batch, y_batch), rows in zip(batches, expected, strict=True):
        assert torch.equal(x_batch, x[rows])
        assert torch.equal(y_batch, y[rows])


def test_no_rows_give_no_batches():
    assert list(iter_batches(torch.zeros(0, 3))) == []


def test_batches_of_data_with_a_gradient_can_each_go_backward():
    x = torch.ones(6, 2, requires_grad=True)
    for (batch,) in iter_batches(x, batch_size=2):
        batch.square().sum().backward()
    assert torch.equal(x.grad, torch.full((6, 2), 2.0))


# --------------------------------------------------------------------------------- validation


def test_validation_loss_is_that_of_the_whole_set_in_evaluation_mode():
    x, y = problem()
    model = network(0.5)
    model[0].eval()  # a part that somebody has set apart stays so
    validate = validation_loss((x, y), nn.MSELoss(), key="held_out")
    (event,) = pipe([{"step": 1, "model": model}], augment(validate))
    modes = [module.training for module in model.modules()]
    assert modes == [True, False, True, True, True]
    model.eval()
    assert event["held_out"] == nn.MSELoss()(model(x), y).item()
    assert isinstance(event["held_out"], float)


def test_validation_without_labels():
    validate = validation_loss((torch.ones(3),), lambda out: out.sum(), last_label=False)
    assert validate({"model": nn.Identity()}) == {"val_loss": 3.0}


def test_the_readme():
    x, y = problem()
    model = network()

    def model_param_norm(event):
        params = nn.utils.parameters_to_vector(event["model"].parameters())
        return {"model_param_norm": torch.linalg.norm(params)}

    events = pipe(
        epoch_stream((x, y), model, torch.optim.Adam(model.parameters()), nn.MSELoss()),
        augment(validation_loss((x, y), nn.MSELoss())),
        augment(model_param_norm),
        take(3),
    )
    history = collect(events)
    assert [list(row) for row in history] == [
        ["step", "train_loss", "val_loss", "model_param_norm"]
    ] * 3


# ---------------------------------------------------------------------------------- bad input


def stream_of(**changes):
    model = network()
    arguments = {
        "train_data": problem(),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": nn.MSELoss(),
        **changes,
    }
    return epoch_stream(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"train_data": (torch.ones(3), torch.ones(4))},
            ShapeError,
            r"same number.*\[3, 4\]",
        ),
        ({"train_data": (torch.ones(3),)}, ConfigError, "last is the label"),
        ({"train_data": ()}, ConfigError, "at least 2 tensors"),
        ({"train_data": torch.ones(3, 2)}, ConfigError, "tuple of tensors, got a Tensor"),
        ({"train_data": (torch.ones(3), [1, 2, 3])}, ConfigError, r"train_data\[1\] must be a t"),
        ({"train_data": (torch.tensor(1.0),) * 2}, ShapeError, "got a scalar"),
        ({"train_data": (torch.ones(0, 4), torch.ones(0, 1))}, DataError, "at least one sample"),
        ({"batch_size": 0}, ConfigError, "batch_size must be an int of at least 1"),
        ({"batch_size": 2.0}, ConfigError, "batch_size must be an int of at least 1"),
        ({"model": 3}, ConfigError, "model must be a torch.nn.Module"),
        ({"model": torch.sigmoid}, ConfigError, "model must be a torch.nn.Module"),
        ({"loss_fn": "mse"}, ConfigError, "loss_fn must be callable"),
        ({"optimizer": None}, ConfigError, "optimizer must be a torch optimizer"),
    ],
)
def test_bad_arguments_are_refused_at_once(changes, error, said):
    with pytest.raises(error, match=said) as caught:
        stream_of(**changes)
    assert isinstance(caught.value, ModularMLError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("loss_fn", "said"),
    [
        (nn.MSELoss(reduction="none"), r"scalar tensor, got shape \(10, 1\)"),
        (lambda out, y: 1.0, "scalar tensor, got a float"),
        (lambda out, y: (out - y).detach().mean(), "does not depend on trainable parameters"),
    ],
)
def test_a_loss_that_cannot_be_used_moves_no_weight(loss_fn, said):
    x, y = problem()
    model = network()
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    stream = epoch_stream((x, y), model, optimizer, loss_fn, batch_size=10)
    with pytest.raises(LossError, match=said):
        next(stream)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_bad_validation():
    x, y = problem()
    with pytest.raises(ShapeError):
        validation_loss((x, y[:3]), nn.MSELoss())
    with pytest.raises(ConfigError, match="last is the label"):
        validation_loss((x,), nn.MSELoss())
    with pytest.raises(ShapeError, match="scalar"):
        validation_loss((x, y), nn.MSELoss(reduction="none"))({"model": network()})
    with pytest.raises(KeyError, match="model"):
        validation_loss((x, y), nn.MSELoss())({"step": 1})
    with pytest.raises(TypeError, match="augment"):
        list(pipe([{"model": network()}], validation_loss((x, y), nn.MSELoss())))


def test_bad_batches():
    with pytest.raises(ShapeError):
        iter_batches(torch.ones(2), torch.ones(3))
    with pytest.raises(ConfigError, match="at least 1 tensors"):
        iter_batches()
    with pytest.raises(ConfigError, match="batch_size"):
        iter_batches(torch.ones(2), batch_size=-1)


def test_a_model_that_is_no_module_is_named():
    validate = validation_loss((torch.ones(2, 1), torch.ones(2, 1)), torch.nn.MSELoss())
    with pytest.raises(ConfigError, match=r"event\['model'\] must be a torch.nn.Module, got a obj"):
        validate({"step": 1, "model": object()})


def test_nothing_to_print_is_refused():
    with pytest.raises(ConfigError, match="keys must name at least one key"):
        print_keys(include_step=False)
