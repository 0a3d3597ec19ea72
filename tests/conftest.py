"""What all tests share: one thread, as two cores run two processes better than one with two threads."""

import torch

torch.set_num_threads(1)
