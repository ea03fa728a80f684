"""What the accelerators of the field can do: the one table behind utilisation, time and memory estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEVICES_DATE = "2026-11"
"""Month of the vendors' data sheets that the table is from."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One kind of device."""

    memory_gib: float
    """What its driver reports as total, rounded down."""
    bf16_tflops: float
    """Dense peak, no sparsity."""
    fp32_tflops: float

    def peak_tflops(self, precision: str) -> float:
        """Return the dense peak for ``bf16`` or ``fp32``, TFLOP/s."""
        return self.bf16_tflops if precision == "bf16" else self.fp32_tflops


DEVICES: Mapping[str, DeviceSpec] = {
    "GB200": DeviceSpec(184, 2500, 80),
    "B200": DeviceSpec(178, 2250, 80),
    "GH200": DeviceSpec(94, 989, 67),
    "H200": DeviceSpec(139, 989, 67),
    "H100 NVL": DeviceSpec(93, 835, 60),
    "H100 PCIe": DeviceSpec(79, 756, 51),
    "H100": DeviceSpec(79, 989, 67),
    "H800": DeviceSpec(79, 989, 67),
    "H20": DeviceSpec(95, 148, 44),
    "A100-SXM4-40GB": DeviceSpec(39, 312, 19.5),
    "A100-PCIE-40GB": DeviceSpec(39, 312, 19.5),
    "A100": DeviceSpec(79, 312, 19.5),
    "A800": DeviceSpec(79, 312, 19.5),
    "L40S": DeviceSpec(44, 362, 91.6),
    "A10G": DeviceSpec(22, 70, 31.5),
    "A10": DeviceSpec(22, 125, 31.2),
    "L4": DeviceSpec(22, 121, 30.3),
    "MI300X": DeviceSpec(191, 1307, 163.4),
}
"""Part of a device's name -> what it can do. The first that is found counts: longer names stand before shorter ones."""


def device_named(name: str) -> DeviceSpec | None:
    """Return the spec of a driver's device name or of a key of the price list, such as ``h100``; None: not known."""
    wanted = name.casefold()
    return next((spec for part, spec in DEVICES.items() if part.casefold() in wanted), None)
