"""Models of all frameworks; each framework is imported on first use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["tensorflow", "torch"],
    submod_attrs={
        "base": ["BaseModel", "model_registry"],
        "layered": ["wrap_model"],
        "sklearn": ["ScikitModelWrapper"],
        "tensorflow.base": ["TensorflowBaseModel"],
        "tensorflow.wrapper": ["TensorflowModelWrapper"],
        "torch.base": ["TorchBaseModel"],
        "torch.wrapper": ["TorchModelWrapper"],
    },
)
