"""Experiments on tabular and sequence data: rows, splits, scalers, graphs of models, results.

Names are loaded when they are first used, so importing this package is quick.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _names = lazy_loader.attach(
    __name__,
    submodules=[
        "audit",
        "callbacks",
        "data",
        "errors",
        "graph",
        "io",
        "loop",
        "migrate",
        "models",
        "plotting",
        "predicates",
        "report",
        "results",
        "runner",
        "samplers",
        "scalers",
        "sklearn",
        "space",
        "splitters",
        "strategies",
        "streams",
        "tracking",
    ],
    submod_attrs={
        "backends": ["Backend"],
        "callbacks": ["EarlyStopping", "EvalLossMetric", "Evaluation"],
        "context": ["ExperimentContext", "RegistrationPolicy"],
        "data.featureset": ["FeatureSet"],
        "data.view": ["FeatureSetView"],
        "experiment": [
            "Accelerator",
            "BatchSchedulingPolicy",
            "Checkpointing",
            "EvalPhase",
            "EvalResults",
            "Experiment",
            "FitPhase",
            "FitResults",
            "InputBinding",
            "PhaseGroup",
            "PhaseGroupResults",
            "ResultRecording",
            "ResultsConfig",
            "TrainPhase",
            "TrainResults",
        ],
        "graph": [
            "ConcatNode",
            "FlattenNode",
            "FunctionNode",
            "MeanNode",
            "ModelGraph",
            "ModelNode",
            "SumNode",
        ],
        "models.base": ["BaseModel"],
        "models.sklearn": ["ScikitModelWrapper"],
        "models.tensorflow.base": ["TensorflowBaseModel"],
        "models.tensorflow.wrapper": ["TensorflowModelWrapper"],
        "models.torch.base": ["TorchBaseModel"],
        "models.torch.wrapper": ["TorchModelWrapper"],
        "report": ["write_model_card", "write_report"],
        "samplers": [
            "NSampler",
            "PairedSampler",
            "SimilarityCondition",
            "SimpleSampler",
            "TripletSampler",
        ],
        "scalers.scaler": ["Scaler"],
        "scalers": ["scaler_registry", "supported_scalers"],
        "strategies": [
            "CVBinding",
            "CrossValidation",
            "Ensemble",
            "ExperimentCollection",
            "Sweep",
            "SweepResults",
            "learning_curve",
            "permutation_test_score",
        ],
        "training": ["AppliedLoss", "LRSchedule", "Loss", "Optimizer"],
    },
)

__all__ = sorted(_names)  # noqa: PLE0605
