"""Forwards as one OpenVINO graph: on CPUs, in 8 and 4 bits, bitwise whatever the tree."""
