"""Questions and answers about classes and parts. The name has no article of its own ("cat", "eye of the cat", "stairs").

Sentences fit singular, plural and uncountable names. No question asks for an explanation, as no answer gives one.
"""

QUESTIONS = (
    "<image>\nPlease segment the {name} in this image.",
    "<image>\nCan you segment the {name} in this picture?",
    "<image>\nPoint out the {name} in this image, please.",
    "<image>\nWhere do you see the {name} in this picture?",
    "<image>\nHighlight the {name} in this image.",
    "<image>\nCan you show me the {name} in this photo?",
    "<image>\nPlease extract the {name} from this picture.",
    "<image>\nFind the {name} and draw a mask over it all.",
    "<image>\nIdentify the {name} in this image, please.",
    "<image>\nWhat region of this image is the {name}? Please mark it.",
    "<image>\nWhat pixels of this picture belong to the {name}? Please mark them all.",
)

ANSWERS = (
    "The {name}.",
    "Here you see the {name}.",
    "Sure, the {name}.",
    "This mask covers the {name}.",
    "You asked for the {name}.",
    "I found the {name}.",
    "I have drawn a mask over the {name}.",
    "My mask shows the {name}.",
    "I have outlined the {name} for you.",
    "Yes, I see the {name} here.",
    "These pixels belong to the {name}.",
    "The mask marks the {name} in this picture.",
    "Of course, this region is the {name}.",
    "I have marked the {name} in the image.",
    "In this picture, I see the {name}.",
    "Done: I have masked the {name}.",
)
