"""Privacy distillation: share medical image data without sharing a patient. The README has the story and the tree."""
