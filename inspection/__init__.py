"""Inspecting checkpoints: blocks and sizes, damage, memory of states and reach of attention."""
