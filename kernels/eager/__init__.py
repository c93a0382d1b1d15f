"""Operations that plain torch can run much faster than the reference does, on any device."""
