"""Forwards as one OpenVINO graph: on CPUs, in 32 to 4 bits, bitwise whatever the tree."""
