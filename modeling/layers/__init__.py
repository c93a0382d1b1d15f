"""The kinds of blocks a hybrid is made of, and the sizes each is described by."""
