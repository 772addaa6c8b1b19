"""Large JSON files: the elements of an array, or of the arrays in an object, one by one; later any element from its bytes.

LLaVA's files have hundreds of megabytes. Parsed at once they take several times that in every data worker; here a data set
keeps two numbers for each element.
"""

import codecs
import contextlib
import json
import re

import numpy as np

from data_pipelines.folders import check_regular
from plum_jax.errors import UserError

BLOCK = 1 << 22  # bytes that are read at a time
MOST = 1 << 28  # characters of one element
SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


class JsonArray:
    """The elements of a JSON array in a file at these byte ranges: `array[i]` reads and parses one of them.

    `ranges` int64[N, 2]: first byte and last byte + 1. It may be any choice of the elements that `scan` found.
    """

    def __init__(self, path, ranges):
        self.path, self.ranges = str(path), np.array(ranges, np.int64).reshape(-1, 2)

    def __len__(self):
        return len(self.ranges)

    def __getitem__(self, index):
        start, stop = self.ranges[index].tolist()
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return json.loads(file.read(stop - start))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: changed or vanished while it was in use ({error}); start again") from error


def scan(path, layout="a JSON array", decoder=DECODER):
    """Yields (first byte, last byte + 1, value) of every element of the JSON array in a file, a few of them in memory.

    Raises UserError when the file is missing, not UTF-8, or not an array; `layout` says what should be there.
    """
    with _readable(path, layout), open(path, "rb") as file:
        yield from _Reader(file, path, decoder).elements()


def scan_object(path, layout="a JSON object", decoder=DECODER):
    """Yields (field, value) for every element of every array that is a field of the JSON object in a file, and (field, []) for
    an array without elements; other fields as they are. Raises UserError as `scan` does."""
    with _readable(path, layout), open(path, "rb") as file:
        yield from _Reader(file, path, decoder).fields()


@contextlib.contextmanager
def _readable(path, layout):
    try:
        check_regular(path)
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; put {layout} there") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); write the file again as UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply; put {layout} there") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); put {layout} there") from error


class _Reader:
    """Reads blocks of a file. `text[position:]` is what comes next, and `byte` is where in the file that starts."""

    def __init__(self, file, path, parser):
        self.file, self.path, self.parser = file, path, parser
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.byte = 3 if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(self.byte)
        self.text, self.position, self.block, self.ended = "", 0, BLOCK, False

    def more(self):
        """Another block behind what is left. An element that did not fit is parsed again after each, so blocks grow."""
        if len(self.text) - self.position > MOST:
            self.fail(f"one element has more than {MOST >> 20} million characters")
        self.block = BLOCK if self.position else 2 * self.block
        data = self.file.read(self.block)
        self.ended = len(data) < self.block
        self.text, self.position = self.text[self.position :] + self.decoder.decode(data, self.ended), 0

    def fail(self, what):
        raise UserError(f"{self.path}: byte {self.byte}: {what}; write the file again as JSON")

    def next(self):
        """The next character that is no white space, "" at the end of the file."""
        while True:
            end = SPACE.match(self.text, self.position).end()
            self.byte += end - self.position
            self.position = end
            if end < len(self.text) or self.ended:
                return self.text[end : end + 1]
            self.more()

    def skip(self, character, what):
        if self.next() != character:
            self.fail(what)
        self.position += 1
        self.byte += 1

    def value(self):
        """-> (first byte, last byte + 1, value) of the element that comes next."""
        while True:
            try:
                value, end = self.parser.raw_decode(self.text, self.position)
                if self.ended or self.text[end : end + 1] in set(" \t\r\n,:]}"):  # else a block may have cut a number
                    break
            except ValueError as error:
                if self.ended:
                    self.fail(f"not readable as JSON ({error})")
            self.more()
        start = self.byte
        self.byte += len(self.text[self.position : end].encode("utf-8"))
        self.position = end
        return start, self.byte, value

    def elements(self):
        yield from self._array()
        self._end()

    def _array(self):
        self.skip("[", "does not start with [")
        if self.next() != "]":
            yield self.value()
        while self.next() != "]":
            self.skip(",", "the array goes on with neither , nor ]")
            self.next()
            yield self.value()
        self.skip("]", "the array does not end")

    def fields(self):
        self.skip("{", "does not start with {")
        while self.next() != "}":
            name = self.value()[2]
            if not isinstance(name, str):
                self.fail("a field has no name")
            self.skip(":", "the name of a field is not followed by :")
            if self.next() == "[":
                empty = True
                for _, _, value in self._array():
                    empty = False
                    yield name, value
                if empty:
                    yield name, []
            else:
                yield name, self.value()[2]
            if self.next() != "}":
                self.skip(",", "the object goes on with neither , nor }")
                self.next()
        self.skip("}", "the object does not end")
        self._end()

    def _end(self):
        if self.next():
            self.fail("something stands behind the end")
