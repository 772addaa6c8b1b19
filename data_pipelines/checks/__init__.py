"""The checks behind `plum data check`: folders of questions, COCO files of parts, the roots of the training data sets."""
