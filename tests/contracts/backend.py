"""What every adapter of a framework with gradients must do. Inherit it and define the rest.

::

    class TestMyAdapter(BackendContract):
        adapter = my_adapter

        def model(self):
            return a_built_model  # (4,) -> (2,), with dropout and one linear layer: model.module
"""

from typing import Any

import numpy as np
import pytest

from modularml.backends import adapter_for, backend_of
from modularml.backends.base import NotFiniteError
from modularml.errors import ConfigError, DeviceError, LossError, ShapeError


class BackendContract:
    adapter: Any

    def model(self) -> Any:
        raise NotImplementedError

    def optimizer(self, module: Any, name: str = "Adam", **kwargs: Any) -> Any:
        cls = {n.lower(): c for n, c in self.adapter.optimizers().items()}[name.lower()]
        moved = self.adapter.parameters(module)
        return self.adapter.make_optimizer(cls, list(moved.values()), {"lr": 0.1, **kwargs})

    def step(self, module: Any, optimizer: Any, scale: float = 1.0) -> Any:
        mse = self.adapter.losses()["MSELoss"](reduction="mean")

        def compute(inputs):
            out = module(inputs[0])
            loss = mse(out, inputs[1]) * scale
            return loss, [loss], [out]

        return self.adapter.train_step(compute, [optimizer])

    def batch(self, n: int = 8, seed: int = 0) -> list[Any]:
        rng = np.random.default_rng(seed)
        arrays = rng.normal(size=(n, 4)).astype("f4"), rng.normal(size=(n, 2)).astype("f4")
        return [self.adapter.from_numpy(a) for a in arrays]

    def array(self, parameter: Any) -> np.ndarray:
        """Return a copy of what a parameter holds."""
        raise NotImplementedError

    def assign(self, parameter: Any, values: np.ndarray) -> None:
        """Give a parameter other values."""
        raise NotImplementedError

    def values(self, module: Any) -> dict[str, np.ndarray]:
        return {n: self.array(p) for n, p in self.adapter.parameters(module).items()}

    # -- tensors

    def test_is_found(self):
        assert adapter_for(self.adapter.backend) is self.adapter
        assert backend_of(self.adapter.zeros((1,), None)) is self.adapter.backend
        assert backend_of(self.adapter.optimizers()["SGD"]) is self.adapter.backend

    @pytest.mark.parametrize("n", [3, 4096])
    def test_copies_and_never_aliases(self, n):
        values = np.arange(2.0 * n).reshape(n, 2)
        for given in (values, values.T, values[:, ::-1], np.asfortranarray(values)):
            tensor, kept = self.adapter.from_numpy(given), given.copy()
            values += 1
            np.testing.assert_array_equal(self.adapter.to_numpy(tensor), kept)
            values -= 1

    @pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "i4", "u1", "u2", "u4", "?", "f2"])
    def test_dtypes(self, dtype):
        values = np.ones(3, dtype)
        np.testing.assert_array_equal(
            self.adapter.to_numpy(self.adapter.from_numpy(values)), values
        )

    def test_text_is_refused(self):
        with pytest.raises(ShapeError, match="dtype"):
            self.adapter.from_numpy(np.array(["a"]))

    def test_rows(self):
        column = self.adapter.from_numpy(np.arange(10.0, dtype="f4")[:, None])
        rows = np.array([3, 1, 3, 9])
        rows.flags.writeable = False
        found = self.adapter.gather(column, rows)
        assert self.adapter.to_numpy(found)[:, 0].tolist() == [3, 1, 3, 9]
        assert [len(p) for p in self.adapter.chunks(column, 4)] == [4, 4, 2]
        assert [len(p) for p in self.adapter.chunks(column, [1, 9])] == [1, 9]
        assert self.adapter.row_bytes(column) == 4
        assert tuple(self.adapter.reshape(found, (1, 1)).shape) == (4, 1, 1)

    def test_means(self):
        made = self.adapter.from_numpy
        for values in (np.full((3, 2), 2.0), np.array([1.0, 3.0]), np.array(2.0)):
            assert float(self.adapter.sample_mean(made(values))) == 2.0
        with pytest.raises(LossError, match="tensor"):
            self.adapter.sample_mean(2.0)
        assert self.adapter.to_numpy(
            self.adapter.mean([made(np.zeros(2)), made(np.ones(2))])
        ).tolist() == [0.5, 0.5]
        assert self.adapter.floats([made(np.array(1.5)), made(np.array(2.5))]) == [1.5, 2.5]
        assert self.adapter.floats([]) == []

    @pytest.mark.parametrize(
        ("mode", "numpy_mode"),
        [
            ("constant", "constant"),
            ("reflect", "reflect"),
            ("replicate", "edge"),
            ("circular", "wrap"),
        ],
    )
    def test_padding_and_concatenation(self, mode, numpy_mode):
        values = np.arange(24.0).reshape(2, 3, 4)
        widths = [(0, 0), (0, 2), (0, 5)]
        extra = {"constant_values": 7.0} if mode == "constant" else {}
        wanted = np.pad(values, widths, mode=numpy_mode, **extra)
        found = self.adapter.pad(self.adapter.from_numpy(values), widths, mode, 7.0)
        np.testing.assert_array_equal(self.adapter.to_numpy(found), wanted)
        both = self.adapter.concat([found, found], 2)
        np.testing.assert_array_equal(
            self.adapter.to_numpy(both), np.concatenate([wanted, wanted], 2)
        )

    def test_devices(self):
        assert str(self.adapter.check_device("cpu")).lower().strip("/").startswith("cpu")
        with pytest.raises(DeviceError, match=r"(?i)cpu"):
            self.adapter.check_device("cuda:97")

    # -- models

    def test_modes_are_restored(self):
        a, b = self.model(), self.model()
        before = a.training, b.training
        with self.adapter.modes([(a, False), (b, True)]):
            assert (a.training, b.training) == (False, True)
            with self.adapter.modes([(a, True)]):
                assert a.training
            assert not a.training
        with pytest.raises(KeyError), self.adapter.modes([(b, not before[1])]):
            raise KeyError
        assert (a.training, b.training) == before

    def test_what_is_frozen_stays(self):
        module = self.model()
        names = list(self.adapter.parameters(module))
        assert len(names) == 2
        optimizer, before = self.optimizer(module), self.values(module)
        for _ in range(2):
            self.adapter.set_frozen(module, True)
            assert list(self.adapter.parameters(module)) == names
        mode = self.adapter.modes([(module, False)])
        other = self.model()
        with mode:
            both = self.optimizer(other)
            mse = self.adapter.losses()["MSELoss"](reduction="mean")

            def compute(inputs):
                loss = mse(module(inputs[0]) + other(inputs[0]), inputs[1])
                return loss, [loss], []

            self.adapter.train_step(compute, [optimizer, both])(self.batch())
        for name, value in self.values(module).items():
            np.testing.assert_array_equal(value, before[name])
        self.adapter.set_frozen(module, False)
        self.step(module, optimizer)(self.batch())
        assert all((value != before[n]).any() for n, value in self.values(module).items())

    # -- training

    def test_a_step_is_what_the_formula_says(self):
        module = self.model()
        optimizer, before = self.optimizer(module, "SGD"), self.values(module)
        inputs = self.batch()
        with self.adapter.modes([(module, False)]):
            losses, outputs = self.step(module, optimizer)(inputs)
        x, y = (self.adapter.to_numpy(t) for t in inputs)
        kernel, bias = before.values()
        kernel = kernel if kernel.shape == (4, 2) else kernel.T
        out = x @ kernel + bias
        np.testing.assert_allclose(
            self.adapter.to_numpy(self.adapter.to_host(outputs[0])), out, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            self.adapter.floats(losses), [((out - y) ** 2).mean()], rtol=1e-5
        )
        moved = bias - 0.1 * 2 * (out - y).sum(axis=0) / out.size
        np.testing.assert_allclose(
            list(self.values(module).values())[1], moved, rtol=1e-4, atol=1e-6
        )

    def test_a_loss_that_is_not_finite_moves_nothing(self):
        for scale, wanted in ((np.nan, np.isnan), (np.inf, np.isposinf), (-np.inf, np.isneginf)):
            module = self.model()
            before = self.values(module)
            with pytest.raises(NotFiniteError) as caught:
                self.step(module, self.optimizer(module), scale)(self.batch())
            assert caught.value.place == 0
            assert wanted(caught.value.value)
            for name, value in self.values(module).items():
                np.testing.assert_array_equal(value, before[name])

    def test_evaluation_moves_nothing(self):
        module = self.model()
        before, (x, _) = self.values(module), self.batch()
        with self.adapter.modes([(module, False)]):
            step = self.adapter.eval_step(lambda inputs: (None, [], [module(inputs[0])]))
            (first,), (again,) = step([x])[1], step([x])[1]
        np.testing.assert_array_equal(self.adapter.to_numpy(first), self.adapter.to_numpy(again))
        for name, value in self.values(module).items():
            np.testing.assert_array_equal(value, before[name])

    @pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Nadam", "Adagrad", "Adafactor"])
    def test_an_optimizer_goes_on_where_its_state_was(self, name):
        ends = []
        extra = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        for stopped in (False, True):
            module = self.model()
            named = self.adapter.parameters(module)
            for seed, p in enumerate(named.values()):
                start = np.random.default_rng(seed).normal(size=self.array(p).shape)
                self.assign(p, start.astype("f4"))
            optimizer = self.optimizer(module, name, **extra)
            with self.adapter.modes([(module, False)]):
                for i in range(4):
                    if stopped and i == 2:
                        state = self.adapter.optimizer_state(optimizer, named)
                        optimizer = self.optimizer(module, name, **extra)
                        self.adapter.load_optimizer_state(optimizer, named, state)
                    self.step(module, optimizer)(self.batch(seed=i))
            ends.append(self.values(module))
        for name_ in ends[0]:
            np.testing.assert_allclose(ends[0][name_], ends[1][name_], rtol=1e-6)

    def test_a_state_of_other_parameters(self):
        module = self.model()
        named = self.adapter.parameters(module)
        optimizer = self.optimizer(module)
        self.step(module, optimizer)(self.batch())
        state = self.adapter.optimizer_state(optimizer, named)
        assert set(state["moments"]) == set(named)
        state["moments"] = {f"other.{n}": m for n, m in state["moments"].items()}
        with pytest.raises(ConfigError, match=r"other\."):
            self.adapter.load_optimizer_state(optimizer, named, state)

    def test_names_of_losses_and_optimizers(self):
        assert {"MSELoss", "CrossEntropyLoss", "L1Loss", "BCEWithLogitsLoss"} <= set(
            self.adapter.losses()
        )
        assert {"Adam", "SGD"} <= set(self.adapter.optimizers())
        assert "Optimizer" not in self.adapter.optimizers()
