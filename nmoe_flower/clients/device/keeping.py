"""What a device keeps of a run besides its expert, so that it can serve and ask afterwards.

Only a device whose node config names a ``store`` keeps these; a simulated client would fill the
disk with copies of what the run folder holds once. ``nmoe bundle --store`` makes a bundle of them.
"""

from collections.abc import Mapping

import numpy as np

from nmoe_flower.clients.device.device import Device
from nmoe_flower.data import with_features
from nmoe_flower.records import part_of

__all__ = ["keep_extractor", "keep_gates"]

Arrays = Mapping[str, np.ndarray]


def keep_extractor(device: Device, classifier: Arrays) -> None:
    """Keep the extractor of ``classifier``, and what describes this device."""
    if not device.serves:
        return
    device.store.save("extractor", part_of(classifier, "extractor."), sync=True)
    device.store.note(
        "device",
        {
            "partition": device.partition,
            "num_clients": device.num_clients,
            "classes": list(device.data.class_names),
            "image_shape": list(device.data.image_shape),
            "config": with_features(device.config, device.data).flat(),
        },
    )


def keep_gates(device: Device, received: Arrays) -> None:
    """Keep every trained gate, ``gate/<method>/...``, as ``gate-<method>``."""
    if not device.serves:
        return
    methods = {name.split("/")[1] for name in received if name.startswith("gate/")} - {"initial"}
    for method in sorted(methods):
        device.store.save(f"gate-{method}", part_of(received, f"gate/{method}/"), sync=True)
