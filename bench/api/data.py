"""What a data set needs."""

from robustspike.bench.data.arrays import ArrayData
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import as_split
from robustspike.bench.data.base import stratified
from robustspike.bench.data.events.sensor import Sensor
from robustspike.bench.data.events.spike_camera import read_spike_dat
from robustspike.bench.data.events.spike_camera import read_spike_npz
from robustspike.bench.data.events.spike_camera import spike_frames

__all__ = [
    "ArrayData",
    "Dataset",
    "Sensor",
    "Split",
    "SplitName",
    "as_split",
    "read_spike_dat",
    "read_spike_npz",
    "spike_frames",
    "stratified",
]
