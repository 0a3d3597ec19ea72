"""Where records come from.

Neither Ray nor another role folder is imported here.
"""
