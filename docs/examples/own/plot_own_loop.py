"""
Your own loop, as a stream
==========================

``epoch_stream`` trains a plain torch model for one epoch whenever you ask for the next event.
Stages process the events. You need no experiment. The data are the diabetes patients of
scikit-learn.

**For your data:** any generator of dicts is a stage: write your own between two of these. Guide:
:doc:`/howto/06_loops_of_your_own`.
"""

# sphinx_gallery_alt = "Training and validation loss over epochs, until the loop stopped early."
import torch
from sklearn.datasets import load_diabetes

from modularml.plotting import loss_curves
from modularml.streams import (
    augment,
    collect_pd,
    early_stop,
    epoch_stream,
    pipe,
    print_keys,
    take,
    tap,
    validation_loss,
)

torch.manual_seed(0)
x, y = load_diabetes(return_X_y=True)
x = torch.tensor(20 * x, dtype=torch.float32)
y = torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)[:, None]
train, held_out = (x[:350], y[:350]), (x[350:], y[350:])
model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
loss = torch.nn.MSELoss()

events = pipe(
    epoch_stream(train, model, optimizer, loss, batch_size=32),
    augment(validation_loss(held_out, loss)),
    tap(print_keys("train_loss", "val_loss"), every=10),
    early_stop("val_loss", patience=5),
    take(60),
)
frame = collect_pd(events)
print(f"{len(frame)} epochs, best validation loss {frame['val_loss'].min():.3f}")
loss_curves({name: frame[name] for name in ("train_loss", "val_loss")})
