"""The public ways beside what other libraries do not make public give the same."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

import modularml

PRIVATE = re.compile(
    r"torch\.(\w+\.)*_[a-z]|\._(foreach|fused|version|opt_called|flatten_layers|keras_mask|buffers"
    r"|modules|parameters|trainable_variables|var_key|value|score_func|scaler|processes)\b"
    r"|import .*\b(keras\.src|torch\._\w+)"
)


def test_they_stand_in_one_place():
    package = Path(modularml.__file__).parent
    files = [p for p in package.rglob("*.py") if "_private" not in p.parts]
    assert len(files) > 100
    code = {p: re.sub(r'""".*?"""|#.*', "", p.read_text("utf-8"), flags=re.DOTALL) for p in files}
    found = {
        f"{path.relative_to(package)}: {match[0]}"
        for path, text in code.items()
        for match in PRIVATE.finditer(re.sub(r"\bself\._\w+|_private\.torch", "", text))
    }
    assert not found


@pytest.fixture
def both(monkeypatch):
    """Return what a function gives in both ways."""

    def run(module, function):
        results = []
        for public in (False, True):
            monkeypatch.setattr(f"modularml._private.{module}.PUBLIC_ONLY", public)
            results.append(function())
        return results

    return run


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch")
        self.own = pytest.importorskip("modularml._private.torch")

    @pytest.mark.parametrize(
        ("name", "others", "settings"),
        [
            ("add_", ["tensor"], {"alpha": 2.0}),
            ("addcmul", ["list", "list"], {}),
            ("addcmul_", ["list", "list"], {}),
            ("div_", ["scalar"], {}),
            ("lerp_", ["list", "scalar"], {}),
            ("mul_", ["list"], {}),
            ("norm", [], {}),
            ("zero_", [], {}),
        ],
    )
    def test_lists_of_tensors(self, both, name, others, settings):
        generator = self.torch.Generator().manual_seed(0)

        def drawn():
            return [self.torch.randn(n, 3, generator=generator) for n in (2, 5, 1)]

        kinds = {"list": drawn, "scalar": lambda: 0.25, "tensor": lambda: self.torch.tensor(0.25)}
        tensors, given = drawn(), [kinds[kind]() for kind in others]

        def run():
            copies = [t.clone() for t in tensors]
            out = self.own.for_each(name)(copies, *given, **settings)
            return copies if name.endswith("_") else list(out)

        for a, b in zip(*both("torch", run), strict=True):
            assert self.torch.equal(a, b)

    def test_hooks_of_modules_and_weights(self, both):
        nn = self.torch.nn
        for register in (
            nn.Module.register_forward_pre_hook,
            nn.Module.register_forward_hook,
            nn.Module.register_full_backward_pre_hook,
            nn.Module.register_full_backward_hook,
        ):
            layer = nn.Linear(2, 1)

            def counts(layer=layer):
                return [len(held) for held in self.own.hooks_of(layer)]

            before, public = both("torch", counts)
            assert before == public == [0, 0, 0, 0]
            handle = register(layer, lambda *_: None)
            now, public = both("torch", counts)
            assert now == public
            assert sum(now) == 1
            handle.remove()
        weight = nn.Parameter(self.torch.ones(2))
        assert both("torch", lambda: self.own.has_weight_hooks(weight)) == [False, False]
        weight.register_post_accumulate_grad_hook(lambda _: None)
        assert both("torch", lambda: self.own.has_weight_hooks(weight)) == [True, True]

    def test_hooks_of_all_modules_and_of_steps(self, both):
        module = self.torch.nn.modules.module

        def counts():
            return [len(held) for held in self.own.global_hooks()]

        assert both("torch", counts) == [[0, 0, 0, 0]] * 2
        handle = module.register_module_forward_hook(lambda *_: None)
        try:
            assert both("torch", counts) == [[0, 1, 0, 0]] * 2
        finally:
            handle.remove()
        optimizer = self.torch.optim.SGD([self.torch.ones(1, requires_grad=True)])
        optimizer.register_step_post_hook(lambda *_: None)
        own = both("torch", lambda: list(map(len, self.own.step_hooks(optimizer))))
        assert own == [[0, 1]] * 2

    def test_layers_that_are_there_twice(self, both):
        nn = self.torch.nn
        act = nn.ReLU()
        net = nn.Sequential(nn.Linear(2, 2), act, nn.Sequential(nn.Linear(2, 2)), act)
        private, public = both("torch", lambda: list(self.own.layers_of(net).items()))
        assert private == public
        assert [name for name, _ in public] == ["0", "1", "2", "3"]

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
    def test_changes_in_place(self, both, dtype):
        for shape in ((3, 2), (1,), ()):
            tensor = self.torch.zeros(shape, dtype=getattr(self.torch, dtype))
            before = both("torch", lambda t=tensor: self.own.version(t))
            assert before == both("torch", lambda t=tensor: self.own.version(t))
            tensor.fill_(1)
            after = both("torch", lambda t=tensor: self.own.version(t))
            assert all(a != b for a, b in zip(before, after, strict=True))

    def test_schedules_may_replace_a_step(self, both):
        def steps():
            weight = self.torch.ones(1, requires_grad=True)
            optimizer = self.torch.optim.RMSprop([weight], lr=0.5)
            step = self.own.late_step(optimizer)
            schedule = self.torch.optim.lr_scheduler.StepLR(optimizer, 1)
            weight.grad = self.torch.ones(1)
            step()
            schedule.step()  # a warning, if the step went by unseen
            return weight.item()

        private, public = both("torch", steps)
        assert private == public


class TestKeras:
    @pytest.fixture(autouse=True)
    def _keras(self):
        pytest.importorskip("tensorflow")
        self.own = pytest.importorskip("modularml._private.keras")
        self.keras = self.own.keras

    def test_layers_and_their_weights(self, both):
        layers = self.keras.layers
        inner = self.keras.Sequential([layers.Dense(3), layers.BatchNormalization()])
        inputs = layers.Input((4, 2))
        outputs = layers.Bidirectional(layers.LSTM(2))(layers.TimeDistributed(inner)(inputs))
        model = self.keras.Model(inputs, layers.Dense(1)(outputs))
        private, public = both("keras", lambda: self.own.all_layers(model))
        assert len({id(la) for la in public}) == len(public)
        assert public[0] is model
        extra = [la for la in public if not any(la is other for other in private)]
        assert len(public) == len(private) + len(extra)  # what a Sequential model holds inside
        assert all(isinstance(la, self.keras.Model) for la in extra)
        for layer in private:
            own, found = both("keras", lambda la=layer: self.own.own_weights(la))
            assert {id(v) for v in own} == {id(v) for v in found}

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_masks(self, both, dtype):
        tf = self.own.tf

        def there_and_back():
            tensor = tf.ones((2, 3, 1), dtype)
            masked = self.own.with_mask(tensor, tf.constant([[True, False, True]] * 2))
            assert masked.dtype == tensor.dtype
            assert self.own.mask_of(tf.ones((2, 3))) is None
            return self.own.mask_of(masked).numpy()

        private, public = both("keras", there_and_back)
        assert (private == public).all()

    def test_what_an_optimizer_trains(self, both):
        variables = [self.keras.Variable([1.0]), self.keras.Variable([2.0])]
        optimizer = self.keras.optimizers.SGD()
        optimizer.build(variables)
        self.own.remember_trained(optimizer, variables)
        private, public = both("keras", lambda: self.own.trained_variables(optimizer))
        assert list(map(id, private)) == list(map(id, public))


@pytest.mark.parametrize("method", ["yeo-johnson", "box-cox"])
def test_standardization_of_powers(both, method):
    from sklearn.preprocessing import PowerTransformer

    from modularml._private import sklearn as own

    rows = np.random.default_rng(0).lognormal(size=(80, 3))
    transformer = PowerTransformer(method=method).fit(rows)
    private, public = both("sklearn", lambda: own.standardization(transformer))
    np.testing.assert_allclose(public, private, rtol=1e-9)


def test_processes_of_an_executor(both):
    from joblib.externals.loky import ProcessPoolExecutor

    from modularml._private import joblib as own

    def ids():
        executor = ProcessPoolExecutor(1)
        own.ask_ids(executor)
        pid = executor.submit(os.getpid).result()
        until = time.monotonic() + 20
        while own.process_ids(executor) != [pid] and time.monotonic() < until:
            time.sleep(0.05)
        found = own.process_ids(executor) == [pid]
        executor.shutdown()
        return found

    assert both("joblib", ids) == [True, True]
