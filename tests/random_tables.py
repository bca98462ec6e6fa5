"""Hypothesis strategies: columns and FeatureSets of every kind that is accepted."""

import string

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modularml.data import FeatureSet

KEYS = st.text(
    alphabet=st.characters(exclude_characters=".:\\/", exclude_categories=("Z", "C")),
    min_size=1,
    max_size=8,
).filter(lambda key: not any(c.isspace() for c in key) and key != "sample_uuids")

NUMBERS = st.sampled_from(
    ["f2", "f4", "f8", ">f8", "i1", "i2", "i4", "i8", ">i4", "u1", "u2", "u4", "u8", "?"]
)
TIMES = st.sampled_from(["M8[D]", "M8[s]", "M8[ms]", "M8[us]", "M8[ns]", "m8[s]", "m8[ns]"])


@st.composite
def columns(draw, n: int):
    """Draw an array of n samples, of any dtype and shape, contiguous in memory or not."""
    shape = draw(st.sampled_from([(), (), (), (1,), (3,), (2, 3)]))
    kind = draw(st.sampled_from(["number", "number", "time", "text"]))
    if kind == "text":
        items = st.text(alphabet=string.printable + "äß漢🙂", max_size=5)
        found = draw(st.lists(items, min_size=n, max_size=n))
        return np.array(found, dtype=object)
    dtype = np.dtype(draw(NUMBERS if kind == "number" else TIMES))
    elements = None
    if kind == "time":
        elements = st.integers(-(2**30), 2**30).map(lambda v: np.array(v).astype(dtype)[()])
    values = draw(hnp.arrays(dtype, (n, *shape), elements=elements))
    layout = draw(st.sampled_from(["plain", "fortran", "reversed", "strided"]))
    if layout == "fortran":
        return np.asfortranarray(values)
    if layout == "reversed":
        return values[::-1]
    if layout == "strided":
        return np.repeat(values, 2, axis=0)[::2]
    return values


@st.composite
def tables(draw, *, min_rows: int = 0, max_rows: int = 12, max_columns: int = 5):
    """Draw ``{key: array}``, and the domain of each key."""
    n = draw(st.integers(min_rows, max_rows))
    keys = draw(st.lists(KEYS, min_size=1, max_size=max_columns, unique=True))
    data = {key: draw(columns(n)) for key in keys}
    domains = {key: draw(st.sampled_from(["features", "targets", "tags"])) for key in keys}
    return data, domains


def featureset(data, domains, label="fs") -> FeatureSet:
    """Make a FeatureSet of a drawn table; it is not registered."""
    chosen = [[k for k in data if domains[k] == d] for d in ("features", "targets", "tags")]
    return FeatureSet.from_dict(label, data, *chosen, register=False)


@st.composite
def featuresets(draw, **limits):
    """Draw a FeatureSet that is not registered."""
    return featureset(*draw(tables(**limits)))
