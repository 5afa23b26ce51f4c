"""OpenStreetMap tags in groups: the table that `--label NAME=osm:FILE` uses unless it is given another.

Classes are numbered from 1 in this order, and a later group is drawn over an earlier one: roads over residential land, buildings over roads.
`polygons`, `lines` and `points` say which tags count for which geometry (key -> values, or True for any value but `no`): a closed way
`highway=*` is a line, not an area. Lines and points are drawn as wide as their buffers, in metres to each side.
"""

GROUPS: tuple[dict, ...] = (
    {"name": "forest", "polygons": {"landuse": ["forest"], "natural": ["wood"]}},
    {"name": "grass and scrub", "polygons": {"landuse": ["grass", "meadow", "village_green"], "natural": ["grassland", "heath", "scrub"],
                                             "leisure": ["park", "golf_course"]}},
    {"name": "farmland", "polygons": {"landuse": ["farmland", "farm", "farmyard", "orchard", "vineyard", "greenhouse_horticulture",
                                                  "plant_nursery", "allotments"]}},
    {"name": "wetland", "polygons": {"natural": ["wetland", "mud"]}},
    {"name": "bare and ice", "polygons": {"natural": ["bare_rock", "scree", "shingle", "sand", "beach", "glacier"], "landuse": ["quarry"]}},
    {"name": "residential", "polygons": {"landuse": ["residential"]}},
    {"name": "industrial and commercial", "polygons": {"landuse": ["industrial", "commercial", "retail", "railway", "landfill"],
                                                       "aeroway": ["aerodrome"]}},
    {"name": "water", "polygons": {"natural": ["water"], "landuse": ["reservoir", "basin"], "waterway": ["riverbank", "dock"]},
     "lines": {"waterway": ["river", "canal"]}, "line_buffer_m": 7.5},
    {"name": "energy", "polygons": {"power": ["plant", "substation", "generator"]}, "points": {"power": ["generator"]}, "point_buffer_m": 15},
    {"name": "road", "lines": {"highway": ["motorway", "motorway_link", "trunk", "trunk_link", "primary", "primary_link", "secondary",
                                           "secondary_link", "tertiary", "tertiary_link", "unclassified", "residential", "living_street", "service"]},
     "line_buffer_m": 5},
    {"name": "rail", "lines": {"railway": ["rail", "light_rail", "narrow_gauge", "tram"]}, "line_buffer_m": 5},
    {"name": "building", "polygons": {"building": True}},
)
BACKGROUND = "other"  # inside the extract, but in no group
IGNORE = 255  # outside the extract
CLASSES = {0: BACKGROUND, **{value: group["name"] for value, group in enumerate(GROUPS, start=1)}}
