"""The operations as Triton kernels; they need a CUDA device and no compiler besides Triton.

With ``TRITON_INTERPRET=1`` they run on the CPU, slowly, for tests.

Names inside kernels follow flash-linear-attention. Arguments have the tensors' names and are
pointers to their first element. ``i_x`` is an index, ``o_x`` are the offsets of a block, ``m_x`` is
a mask, ``p_x`` are pointers, and ``b_x`` is a block of loaded or computed values. ``T``, ``P`` and
``N`` are the sequence length, the size of a head and the size of its state; ``BT``, ``BP`` and
``BN`` are the sizes of the blocks along them. ``ACC`` is the dtype of the computation.
"""
