"""`plum data check` for data that is not a folder of questions: a COCO file of parts, the roots of the training data sets."""
