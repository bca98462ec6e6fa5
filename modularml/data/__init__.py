"""Rows: schema, Arrow table, views, FeatureSets, references and batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch": ["Batch", "BatchView", "RoleData", "SampledView"],
        "collection": ["SampleCollection"],
        "execution_context": ["ExecutionContext"],
        "featureset": ["FeatureSet"],
        "formats": ["DataFormat"],
        "references": [
            "ExperimentNodeReference",
            "FeatureSetColumnReference",
            "FeatureSetReference",
            "GraphNodeReference",
        ],
        "samples": ["SampleData", "SampleShapes"],
        "schema": ["ColumnSpec", "SampleSchema"],
        "view": ["FeatureSetView"],
    },
)
