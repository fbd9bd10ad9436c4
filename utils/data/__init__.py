"""Images with labels, class names, groups and masks, by the name of their data set; how downloads are laid out, how
pictures are read, and how the embedded scenes are drawn. Models are not known here: pictures leave as pictures."""
