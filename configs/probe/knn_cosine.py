"""k-NN as in the self-supervised literature: cosine, weighted votes beside plain ones.

Wu et al. (2018, section 3.4), and DINO after them: neighbours count as exp(cosine / 0.07). Features
are taken as they are, not standardised.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.protocol = "knn"
    config.candidates = (10, 20, 100, 200)  # values of k to choose from
    config.votes = ("weighted", "majority")
    config.temperature = 0.07
    config.metric = "cosine"
    config.standardize = False
    return config
