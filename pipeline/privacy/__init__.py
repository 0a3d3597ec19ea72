"""Re-identification: networks, gallery matching, thresholds and risk statistics.

Neither Ray nor another role folder is imported here.
"""
