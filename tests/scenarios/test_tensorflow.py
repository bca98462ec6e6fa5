"""Graphs of Keras models, held against TensorFlow written by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import modularml as mm
from modularml.audit import AuditWarning
from modularml.data.batch import SampleData
from modularml.errors import DeviceError, LossError, NonFiniteLossError
from modularml.models.tensorflow import SequentialMLP
from tests.keras_worlds import assert_equal_weights, by_hand, net, twin
from tests.worlds import (
    QUIET,
    arrays,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mse,
    train,
    train_phase,
)


def optimizer(name="sgd", **kwargs):
    return mm.Optimizer(name, opt_kwargs={"lr": 0.05, **kwargs})


def encoder(seed=0):
    keras.utils.set_random_seed(seed)
    made = [layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.4), layers.ReLU()]
    model = keras.Sequential(made)
    model(np.zeros((2, 6), "f4"))
    return model


def epochs_of(results):
    return results.metrics().where(name="train_loss", batch=None).values()


class TestByHand:
    @pytest.mark.parametrize(
        ("name", "kwargs"), [("sgd", {}), ("sgd", {"momentum": 0.9}), ("adam", {"lr": 0.01})]
    )
    def test_mlp(self, name, kwargs):
        x, y = arrays(n=50)
        model = net()
        hand = twin(model)
        made = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[name]
        rate = kwargs.get("lr", 0.05)
        others = {k: v for k, v in kwargs.items() if k != "lr"}
        expected = by_hand(hand, made(learning_rate=rate, **others), x, y)
        results = train(
            graph_of(featureset(x, y), model, name, **{"lr": 0.05, **kwargs}), n_epochs=2
        )
        assert_equal_weights(model, hand)
        np.testing.assert_allclose(epochs_of(results), expected, rtol=1e-5)

    def test_dropout_and_batch_norm(self):
        """Noise comes from the layers' own seeds, and moving means move as in Keras."""
        x, y = arrays(n=50)
        model = keras.Sequential([encoder(), layers.Dense(1)])
        model(x[:2])
        hand = twin(model)
        before = [w.numpy() for w in model.weights]
        by_hand(hand, keras.optimizers.SGD(0.05), x, y)
        train(graph_of(featureset(x, y), model), n_epochs=2)
        assert_equal_weights(model, hand)
        assert all((w.numpy() != b).any() for w, b in zip(model.weights, before, strict=True))

    def test_two_branches_with_padding(self):
        x, y = arrays(n=50)
        fs = featureset(x, y)
        one, two = net(3, 4, seed=1), net(3, 2, seed=2)
        head = net(8, 1, seed=3)
        a = mm.ModelNode("a", one, fs.reference(features=["x0", "x1", "x2"], targets="y"))
        b = mm.ModelNode("b", two, fs.reference(features=["x3", "x4", "x5"], targets="y"))
        both = mm.ConcatNode("both", [a, b, b], concat_axis_targets="first")
        graph = mm.ModelGraph([a, b, both, mm.ModelNode("net", head, both)], optimizer())
        ends = [keras.Input((3,)), keras.Input((3,))]
        left, right = twin(one, 3)(ends[0]), twin(two, 3)(ends[1])
        merged = layers.Concatenate()([left, right, right])
        hand = keras.Model(ends, twin(head, 8)(merged))
        by_hand(hand, keras.optimizers.SGD(0.05), [x[:, :3], x[:, 3:]], y)
        train(graph, n_epochs=2)
        for mine, theirs in zip((one, two, head), hand.layers[2:4] + hand.layers[-1:], strict=True):
            assert_equal_weights(mine, theirs)

    @pytest.mark.parametrize("cached", [True, False])
    def test_frozen_encoder(self, cached):
        x, y = arrays(n=50)
        enc, head = encoder(), net(5)
        if not cached:  # noise in evaluation too: its outputs cannot be computed once

            class Noisy(keras.layers.Layer):
                def call(self, z):
                    return (
                        z + 0.0 * tf.random.normal(tf.shape(z)) + 1e-9 * tf.random.uniform((1, 5))
                    )

            enc = keras.Sequential([enc, Noisy()])
            enc(x[:2])
        before = [w.numpy() for w in enc.weights]
        seen = enc(x, training=False).numpy()
        hand = twin(head, 5)
        fs = featureset(x, y)
        first = mm.ModelNode("enc", enc, fs)
        graph = mm.ModelGraph([first, mm.ModelNode("net", head, first)], optimizer())
        graph.build()
        first.freeze()
        train(graph, n_epochs=2)
        by_hand(hand, keras.optimizers.SGD(0.05), seen, y)
        assert_equal_weights(head, hand)
        assert all(np.array_equal(w, b) for w, b in zip(enc.weights, before, strict=True))
        first.unfreeze()
        train(graph, n_epochs=1, label="again")
        assert all((w.numpy() != b).any() for w, b in zip(enc.weights, before, strict=True))

    def test_stage_by_stage(self):
        """With an optimizer each, gradients stop behind a node with a loss of its own."""
        x, y = arrays(n=50)
        first, second = net(6, 1, seed=1), net(1, 1, seed=2)
        a = mm.ModelNode("a", first, featureset(x, y), optimizer())
        b = mm.ModelNode("b", second, a, optimizer("adam", lr=0.01))
        hands, losses = (twin(first), twin(second, 1)), [mse("a"), mse("b", weight=0.5)]
        sgd, adam = keras.optimizers.SGD(0.05), keras.optimizers.Adam(0.01)
        for at in range(0, 50, 16):
            rows = slice(at, at + 16)
            with tf.GradientTape(persistent=True) as tape:
                out = hands[0](x[rows], training=True)
                own = tf.reduce_mean((out - y[rows]) ** 2)
                end = hands[1](tf.stop_gradient(out), training=True)
                other = 0.5 * tf.reduce_mean((end - y[rows]) ** 2)
            for loss, hand, opt in ((own, hands[0], sgd), (other, hands[1], adam)):
                moved = hand.trainable_variables
                opt.apply_gradients(zip(tape.gradient(loss, moved), moved, strict=True))
        train(mm.ModelGraph([a, b]), losses, n_epochs=1)
        assert_equal_weights(first, hands[0])
        assert_equal_weights(second, hands[1])

    @pytest.mark.parametrize(
        ("loss", "inputs"),
        [
            (mm.Loss("cross_entropy"), ["outputs", "targets"]),
            (
                mm.Loss(
                    keras.losses.SparseCategoricalCrossentropy, loss_kwargs={"from_logits": True}
                ),
                ["outputs", "targets"],
            ),
            (
                mm.Loss(
                    factory=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    backend="tf",
                ),
                {"y_true": "targets", "y_pred": "outputs"},
            ),
        ],
        ids=["name", "class", "factory"],
    )
    def test_classes(self, loss, inputs):
        x, _ = arrays(n=50)
        labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
        model = net(out=3)
        hand = twin(model)

        def cross_entropy(out, target):
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, out))

        by_hand(hand, keras.optimizers.SGD(0.05), x, labels, loss=cross_entropy)
        graph = graph_of(featureset(x, labels), model)
        train(graph, [mm.AppliedLoss(loss, on="net", inputs=inputs)], n_epochs=2)
        assert_equal_weights(model, hand)

    @pytest.mark.parametrize("inputs", [["outputs", "targets"], ["targets", "outputs"]])
    def test_a_loss_of_keras_gets_each_where_it_belongs(self, inputs):
        x, y = arrays(n=16)
        y = np.abs(y) + 0.1
        model = keras.Sequential([layers.Dense(1, activation="softplus")])
        graph = graph_of(featureset(x, y), model)
        graph.build()
        out = model(x)
        for made in (mm.Loss(keras.losses.Poisson), mm.Loss(keras.losses.poisson)):
            loss = mm.AppliedLoss(made, on="net", inputs=inputs)
            phase = eval_phase(graph, [loss], label=made.name)
            found = experiment(made.name).run_phase(phase, **QUIET).aggregated_losses("net")
            expected = float(keras.losses.Poisson()(y, out))
            np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5)


class TestExperiment:
    def test_evaluation_prediction_and_checkpoints(self, tmp_path):
        x, y = arrays(n=60)
        fs = featureset(x, y)
        fs.split_random({"train": 0.7, "val": 0.3}, seed=0)
        graph = graph_of(fs, SequentialMLP(n_layers=3, dropout=0.2), "adam", lr=0.01)
        val = eval_phase(graph, label="val", split="val")
        stop = mm.EarlyStopping(patience=2, restore_best=True)
        watch = mm.EvalLossMetric(loss=val.losses[0])
        callbacks = [mm.Evaluation(eval_phase=val, metrics=[watch]), stop]
        phase = train_phase(graph, split="train", shuffle=True, n_epochs=25, callbacks=callbacks)
        exp = experiment()
        results = exp.run_phase(phase, **QUIET)
        values = results.metrics().where(name="val_loss").values()
        after = exp.run_phase(val, **QUIET)
        np.testing.assert_allclose(list(after.aggregated_losses("net").values()), min(values))
        kept, shown = graph.get_state(), graph.predict(fs)
        np.testing.assert_allclose(
            shown, graph.get_node("net").model(x, training=False).numpy(), rtol=1e-5, atol=1e-6
        )
        path = graph.save_checkpoint(tmp_path / "here")
        train(graph, n_epochs=1, label="more")
        assert not np.allclose(graph.predict(fs), shown)
        graph.restore_checkpoint(path)
        np.testing.assert_array_equal(graph.predict(fs), shown)
        moments = graph.get_state()["optimizer"]["moments"]
        for name, own in kept["optimizer"]["moments"].items():
            for slot, value in own.items():
                np.testing.assert_array_equal(moments[name][slot], value)

    def test_a_preview_leaves_no_trace_in_dropout(self):
        x, y = arrays(n=40)
        model = keras.Sequential([encoder(), layers.Dense(1)])
        model(x[:2])
        hand = twin(model)
        graph = graph_of(featureset(x, y), model)
        experiment().preview_phase(train_phase(graph, n_epochs=2), **QUIET)
        by_hand(hand, keras.optimizers.SGD(0.05), x, y, epochs=1)
        train(graph, n_epochs=1, label="real")
        assert_equal_weights(model, hand)

    def test_saved_and_loaded(self, tmp_path):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        graph = graph_of(fs, SequentialMLP(dropout=0.1), "adam", lr=0.01)
        train(graph, n_epochs=1)
        noise = graph.get_node("net").get_state()["model"]["seeds"]
        shown = graph.predict(fs)
        graph.save(tmp_path / "g")
        with mm.ExperimentContext().activate():
            again = featureset(x, y)
            loaded = mm.ModelGraph.load(tmp_path / "g.mg.mml")
            np.testing.assert_array_equal(loaded.predict(again), shown)
            assert np.array_equal(loaded.get_state()["nodes"]["net"]["model"]["seeds"], noise)
            assert loaded.optimizer.get_state()["groups"][0]["iteration"] == 2

    def test_a_loss_that_is_not_finite_names_its_place(self):
        x, y = arrays(n=50)
        y[40] = np.inf
        model = net()
        graph = graph_of(featureset(x, y), model)
        hand = twin(model)
        by_hand(hand, keras.optimizers.SGD(0.05), x[:32], y[:32], epochs=1)
        place = r"mse_net.*'net' is inf in.*batch 2"
        with pytest.warns(AuditWarning), pytest.raises(NonFiniteLossError, match=place) as caught:
            train(graph)
        assert (caught.value.batch, caught.value.value) == (2, np.inf)
        assert_equal_weights(model, hand)

    def test_other_bad_input(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), net())
        bad = mm.AppliedLoss(
            mm.Loss(lambda out, target: 3.0), on="net", inputs=["outputs", "targets"]
        )
        with pytest.raises(LossError, match="tensor"):
            train(graph, [bad])
        with pytest.raises(DeviceError, match="CPU:0"):
            train(graph, accelerator="cuda:5", label="there")
        assert train(graph, accelerator="cpu", label="here", n_epochs=1) is not None

    def test_steps_by_hand(self):
        x, y = arrays(n=16)
        fs = featureset(x, y)
        model = net()
        graph = graph_of(fs, model)
        phase = train_phase(graph, n_epochs=1)
        hand = twin(model)
        by_hand(hand, keras.optimizers.SGD(0.05), x, y, epochs=1)
        graph.build()
        for ctx in phase.iter_execution(**QUIET):
            graph.train_step(ctx, phase.losses)
            np.testing.assert_allclose(phase.losses[0].compute(ctx), ctx.losses[0].value, rtol=1e-6)
        assert_equal_weights(model, hand)
        batch = SampleData(features=x)
        np.testing.assert_allclose(
            graph.get_node("net").forward_single(batch).outputs, model(x), rtol=1e-6
        )
        found = graph.get_optimizer_parameters()
        assert found["variables"] == model.trainable_variables
