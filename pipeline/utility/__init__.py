"""What synthetic images are good for: downstream accuracy and fidelity.

Neither Ray nor another role folder is imported here.
"""
