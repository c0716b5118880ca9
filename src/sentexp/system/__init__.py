"""The machine: devices, memory, files of packages, the hub."""
