"""The shared package of all scripts; each folder says what is in it and what is not.

Letters of shapes, everywhere: b images, l layers, h heads of a layer, c components (or heads of all layers), n tokens
(class token first), w width of a tower, k width of a head, d width of the joint space (of a model without texts: its
own), m texts, s side of an image in pixels. Other letters are explained where they stand.
"""
