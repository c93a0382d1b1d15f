"""The layers of a hybrid: the mixer of each kind of block, norms and RoPE."""
