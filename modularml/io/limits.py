"""Size limits, kinds and error codes of artifacts."""

from __future__ import annotations

FORMAT = "modularml"
SCHEMA = 1
"""The newest schema this library writes; it reads this one and every older one."""

KINDS = {
    "en": "Ensemble",
    "exp": "Experiment",
    "fs": "FeatureSet",
    "mg": "ModelGraph",
    "md": "model",
    "ls": "Loss",
    "op": "Optimizer",
    "sc": "Scaler",
    "sm": "sampler",
    "sp": "splitter",
    "ckpt": "checkpoint",
    "log": "history of checkpoints",
}
"""Kinds of artifact by suffix."""

MAX_MEMBERS = 4096
MAX_FILE = 2**32 - 1
MAX_LOG = 2**40 - 1
MAX_JSON = 16 * 2**20
MAX_JSON_DEPTH = 64
MAX_JSON_PARTS = 1_000_000
MAX_JSON_NESTS = 500_000
MAX_JSON_DICTS = 200_000
MAX_RANK = 16
MAX_TENSOR_HEADER = 2 * 2**20
MAX_NESTING = 8
MAX_NAME_DEPTH = 8
ALIGNMENT = 64

DAMAGED = "MML-101"  # damaged
NEWER = "MML-102"  # written by a newer version
FOREIGN = "MML-103"  # no artifact
TOO_LARGE = "MML-104"  # over a limit
BAD_NAME = "MML-105"  # a name that is not allowed
OTHER_KIND = "MML-106"  # another kind of artifact
MISFIT = "MML-107"  # contents that do not fit each other
NO_CLASS = "MML-108"  # an unknown class
NO_CODE = "MML-109"  # packaged code
EXISTS = "MML-110"  # a file that already exists
NOT_WRITTEN = "MML-111"  # a file that could not be written
NO_PLAIN_DATA = "MML-112"  # an object that cannot be stored as data
NOT_FOUND = "MML-113"  # no such file
