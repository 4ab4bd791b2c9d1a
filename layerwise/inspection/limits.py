"""The thresholds of the diagnosis, set on the development half of bench/diagnosis.py."""

POOR_FALL = 0.15  # a training that removed less of the chance loss than this has not learned
SLOW_FALL = 0.35  # and less than this is slow, where initialisation or depth is the suspect
DEAD, SATURATED = 0.75, 0.5  # share of a layer's units
GAIN_LOW, GAIN_HIGH = 0.25, 3.0  # of fresh weights; sound starts lie between 0.5 and 1.5
FADED, GROWN = 0.02, 30.0  # size of the last hidden activations over that of the inputs
VANISHED, EXPLODED = 1e-3, 1e3  # relative gradient of the lowest layers over that of the highest
DEEP, VERY_DEEP = 12, 20  # weight layers without a shortcut
ALIKE = 0.02  # spread below which a layer outputs nearly the same for every row
WILD, IDLE = 0.15, 5e-4  # pace that is far too large, far too small
AIM = {"sgd": 3e-3, "": 8e-3}  # the pace that a corrected learning rate aims at
ALMOST_ALL = 0.9  # of a token embedding's size that is the same for every token
PARALLEL = 0.995  # mean cosine between the features of different texts
STUCK = 0.5  # share of a layer's heads that read one key alone
EMPTY_ROWS = 0.1  # share of rows without any loss
UNDERFLOW = 0.3  # share of gradient entries that are zero in fp16, beside those of silent units
