"""What training takes before anything is rented: memory, time, money, in closed form and by walking the orders that
the executor walks; of a user's own model by running its code once. No device is needed."""

from __future__ import annotations

from shoal_workloads.estimate.cost import Bill, Reckoned, Rent, bill
from shoal_workloads.estimate.hardware import Hardware, calibrated, device_name, entry_of, hardware, known_hardware
from shoal_workloads.estimate.step import Cluster, Estimate, estimate, memory_over_step

__all__ = [
    "Bill",
    "Cluster",
    "Estimate",
    "Hardware",
    "Reckoned",
    "Rent",
    "bill",
    "calibrated",
    "device_name",
    "entry_of",
    "estimate",
    "hardware",
    "known_hardware",
    "memory_over_step",
]
