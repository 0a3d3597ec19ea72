"""Models that make images from prompts.

Neither Ray nor another role folder is imported here.
"""
