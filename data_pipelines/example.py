"""A stored record: key, encoded image and JSON as the bytes of a `tf.train.Example`, written and read without TensorFlow.

The protocol buffer of an Example with byte strings only is three nested messages, so that it takes less code than importing a
library for it. TFDS and every other reader of Examples can read what is written here.
"""

import json

FIELDS = ("image", "key", "record")  # sorted, as TFDS writes them: equal records are equal bytes


def record_text(record):
    """JSON of a record; equal records are equal texts."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode_record(key, image, record):
    """key str, image bytes (b"" for none), record bytes of JSON -> bytes."""
    values = (image, key.encode(), record)
    entries = [
        _field(1, _field(1, name.encode()) + _field(2, _field(1, _field(1, value))))
        for name, value in zip(FIELDS, values, strict=True)
    ]
    return _field(1, b"".join(entries))


def decode_record(data):
    """bytes -> (key, image, record). ValueError when these are not the three fields of `encode_record`."""
    found = {}
    (features,) = _fields(data, 1)
    for entry in _fields(features, 1):
        (name,), (feature,) = _fields(entry, 1), _fields(entry, 2)
        (values,) = _fields(feature, 1)
        (found[name.decode()],) = _fields(values, 1)
    if sorted(found) != list(FIELDS):
        raise ValueError(f"record has the fields {sorted(found)}, expected {list(FIELDS)}")
    return found["key"].decode(), found["image"], json.loads(found["record"])


def _varint(number):
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    data.append(number)
    return bytes(data)


def _field(number, value):
    """A length-delimited field (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _read_varint(data, place):
    number, shift = 0, 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, place


def _fields(data, wanted):
    """Values of all fields with number `wanted`; every field of these messages is length-delimited."""
    values, place = [], 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        length, place = _read_varint(data, place)
        if tag & 7 != 2 or place + length > len(data):
            raise ValueError("record is not an Example of byte strings")
        if tag >> 3 == wanted:
            values.append(data[place : place + length])
        place += length
    return values
