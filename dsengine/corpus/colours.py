"""Colours of classes for pictures: natural ones by the words in a class's name, distinct ones for the rest."""

from collections.abc import Mapping

# Whole words; the first row that a name has a word of decides. Two classes of one colour: the second gets the next of SPARE.
NATURAL = (
    ("#ffffff", ("no", "nodata", "unknown", "unlabelled", "unlabeled", "background", "none")),
    ("#e9f3fa", ("snow", "ice", "glacier", "glaciers")),
    ("#c9cdd2", ("cloud", "clouds")),
    ("#e8a23c", ("rice", "orchard", "vineyard", "vineyards", "plantation")),
    ("#5aa9a0", ("wetland", "wetlands", "flooded", "marsh", "marshes", "peat", "mangroves", "bogs")),
    ("#3d7fc4", ("water", "sea", "ocean", "lake", "river", "waters", "watercourses")),
    ("#17633a", ("needleleaf", "coniferous", "needleleaved", "evergreen")),
    ("#3f8f4f", ("forest", "forests", "tree", "trees", "broadleaf", "wood", "woodland")),
    ("#c4574a", ("built", "urban", "built-up", "artificial", "residential", "industrial", "settlement", "building", "buildings", "highway", "road")),
    ("#e6cf62", ("crop", "crops", "cropland", "agriculture", "agricultural", "arable", "farmland", "annualcrop")),
    ("#9c8f3d", ("shrub", "shrubs", "shrubland", "scrub", "heath", "savanna", "savannas")),
    ("#a8cf77", ("grass", "grassland", "grasslands", "rangeland", "pasture", "pastures", "meadow", "herbaceous")),
    ("#b9a48b", ("bare", "barren", "rock", "sand", "soil", "desert", "beaches")),
)
SPARE = ("#7a5195", "#ef5675", "#ffa600", "#2f9e9e", "#8c564b", "#6b8e23", "#d687c9", "#4c5c96", "#a05d56", "#00876c", "#d9b44a", "#5f6c7b",
         "#b5406d", "#1f78b4", "#93b7be", "#ff7c43", "#665191", "#99c140", "#7f3c8d", "#11a579")
SPLITS = {"train": "#3566a8", "val": "#e3a02b", "test": "#c0392b"}


def class_colours(classes: Mapping[int, str]) -> dict[int, str]:
    """Value -> "#rrggbb", the same for the same table; colours repeat only beyond about thirty classes."""
    found: dict[int, str] = {}
    spare = 0
    for value, name in classes.items():
        words = set(name.lower().replace(",", " ").replace("/", " ").split())
        colour = next((colour for colour, known in NATURAL if words.intersection(known)), None)
        if colour is None or colour in found.values():
            colour, spare = SPARE[spare % len(SPARE)], spare + 1
        found[value] = colour
    return found
