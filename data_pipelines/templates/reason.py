"""Wording of reasoning segmentation: requests, and sentences that carry a query where no response is given (D 4.1.6).

A short query is a noun phrase ("the thing to sit on"); a long one is a sentence of its own.
"""

SHORT = (
    "<image>\nPlease segment {query} in this image.",
    "<image>\nCan you segment {query} in this picture?",
    "<image>\nPlease point out {query} in the image.",
    "<image>\nCould you show me where {query} is in this image?",
    "<image>\nHighlight {query} in this picture, please.",
    "<image>\nPlease outline {query} in the image.",
    "<image>\nPlease extract {query} from this image.",
    "<image>\nPlease find {query} in this picture and mark it.",
    "<image>\nWhich region of the image shows {query}? Please identify it.",
    "<image>\nWhat is {query} in this image? Please name it and show where it is.",
    "<image>\nWhat is {query} in this picture? Please describe it and mark its region.",
)
LONG = (
    "<image>\n{query} Please answer with a segmentation mask.",
    "<image>\n{query} Please mark the region in the image.",
    "<image>\n{query} Please show where it is and say what it is.",
    "<image>\n{query} Please segment it and give a short explanation.",
)
EXPLAIN = (
    "Please explain why.",
    "Please give your reasons.",
    "Why is that so? Please explain.",
    "Please explain how you came to this answer.",
    "Please justify your answer.",
)
SHORT_CARRIER = "This region shows {query}."
LONG_CARRIER = 'This region is the answer to "{query}"'
