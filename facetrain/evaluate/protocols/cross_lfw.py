"""CALFW (Zheng et al., 2017) and CPLFW (Zheng and Deng, 2018)."""

from __future__ import annotations

from facetrain.evaluate.protocols.listed_pairs import ListedPairs


class Calfw(ListedPairs):
    """Cross-Age LFW: photographs of one person are years apart; different people are of one sex and race."""

    lists = ("pairs_CALFW.txt", "calfw_ann.txt")
    folders = (
        "images",
        "images&landmarks/images&landmarks/images",
        "images&landmarks/images",
        ".",
        "calfw",
        "aligned images",
    )


class Cplfw(ListedPairs):
    """Cross-Pose LFW: photographs of one person differ in pose; different people are of one sex and race."""

    lists = ("pairs_CPLFW.txt", "cplfw_ann.txt")
    folders = ("images", ".", "cplfw", "aligned images")
