"""A trained model: network, processors, task and calibration; saved, loaded, used and scored."""
