"""Questions and answers about referring phrases.

A phrase is whatever people typed ("left", "the man that sits"): it stands after a colon or in quotation marks, where any phrase
is grammatical.
"""

QUESTIONS = (
    "<image>\nPlease segment this in the image: {name}.",
    '<image>\nCan you segment what is meant by "{name}"?',
    "<image>\nPoint this out in the picture, please: {name}.",
    '<image>\nWhere in this picture is "{name}"?',
    "<image>\nHighlight the following: {name}.",
    '<image>\nCan you show me what "{name}" refers to?',
    "<image>\nPlease extract this from the picture: {name}.",
    "<image>\nFind this and draw a mask over it: {name}.",
    "<image>\nIdentify the following in the image, please: {name}.",
    '<image>\nWhat does "{name}" mean in this image? Please mark it.',
    '<image>\nWhat is described here as "{name}"? Please mark it in the picture.',
)

ANSWERS = (
    "{name}",
    'This is "{name}".',
    "Sure: {name}.",
    "This mask covers what you described: {name}.",
    "You asked for this: {name}.",
    'I found "{name}" in the picture.',
    'I have drawn a mask over "{name}".',
    "My mask shows the following: {name}.",
    'I have outlined "{name}" for you.',
    'Yes, I see "{name}" here.',
    "These pixels belong to it: {name}.",
    'The mask marks "{name}" in this picture.',
    "Of course, this region: {name}.",
    "I have marked this in the image: {name}.",
    'In this picture, this is "{name}".',
    "Done: {name}.",
)

NO_TARGET_ANSWERS = (
    "Nothing in this image fits these words.",
    "I see nothing like this in the picture.",
    "There is no such thing in this image.",
    "No part of this picture matches the description.",
)
