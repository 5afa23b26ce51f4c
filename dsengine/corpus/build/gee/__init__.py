"""Google Earth Engine through its REST interface: lists of images, and patches of pixels on a grid that we name."""
