"""A Google Cloud Storage that lives in memory: the part of its JSON API that tensorstore, gcsfs and google-cloud-storage use.

The real clients talk to it over HTTP, from this process and from others, so what is tested is what runs against a bucket.
Objects appear whole and are never renamed or appended to, as in the real thing.
"""

import contextlib
import email.parser
import email.policy
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def fake_gcs(*buckets):
    """Serves empty buckets -> Storage; `.env` points the clients of any process at it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.storage = True, Storage(f"127.0.0.1:{server.server_port}", buckets)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.storage
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Storage:
    """Attributes: objects, {"bucket/name": bytes}; requests, [(method, path)] in order; env, variables for the clients."""

    def __init__(self, address, buckets):
        self.address, self.buckets, self.lock = address, set(buckets), threading.Lock()
        self.objects, self.generations, self.uploads, self.requests, self.count = {}, {}, {}, [], 0

    @property
    def env(self):
        url = f"http://{self.address}"
        return {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCE_METADATA_ROOT": self.address,  # no waiting for the metadata server of a machine that is not in the cloud
            "NO_GCE_CHECK": "true",
            "EPATH_USE_TF": "false",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks a second service for the kind of every bucket
        }

    def names(self, prefix=""):
        with self.lock:
            return sorted(key for key in self.objects if key.startswith(prefix))

    def put(self, bucket, name, body, condition=None):
        """-> metadata, or None when ifGenerationMatch does not hold."""
        key = f"{bucket}/{name}"
        with self.lock:
            if condition is not None and int(condition) != self.generations.get(key, 0):
                return None
            self.count += 1
            self.objects[key], self.generations[key] = body, self.count
        return self.about(bucket, name)

    def about(self, bucket, name):
        """Metadata of an object, None when there is none."""
        with self.lock:
            body, generation = self.objects.get(f"{bucket}/{name}"), self.generations.get(f"{bucket}/{name}")
        if body is None:
            return None
        return {
            "kind": "storage#object", "name": name, "bucket": bucket, "id": f"{bucket}/{name}/{generation}",
            "generation": str(generation), "metageneration": "1", "size": str(len(body)), "contentType": "text/plain",
            "timeCreated": "2030-01-01T00:00:00.000Z", "updated": "2030-01-01T00:00:00.000Z", "etag": str(generation),
        }  # fmt: skip

    def listing(self, bucket, query):
        """A page of names from startOffset to endOffset; with a delimiter, the folders of that level besides."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = max(query.get("startOffset", ""), query.get("pageToken", "")), query.get("endOffset")
        items, folders, size = [], set(), int(query.get("maxResults", 1000))
        for key in self.names(f"{bucket}/{prefix}"):
            name = key.partition("/")[2]
            if name < start or (end and name >= end):
                continue
            inner, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                folders.add(prefix + inner + delimiter)
            elif len(items) == size:
                return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders), "nextPageToken": name}
            else:
                items.append(self.about(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def delete(self, bucket, name, condition=None):
        key = f"{bucket}/{name}"
        with self.lock:
            if condition is not None and int(condition) != self.generations.get(key, 0):
                return 412
            return 204 if self.objects.pop(key, None) is not None and self.generations.pop(key) else 404


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle_one_request()

    def _answer(self):
        storage, url = self.server.storage, urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        storage.requests.append((self.command, self.path))
        body = self._body()
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        where = parts.index("b") if "b" in parts else None
        if where is None:
            return self._send(404)
        kind, (bucket, *rest) = parts[:where], parts[where + 1 :]
        if bucket not in storage.buckets:
            return self._send(404, {"error": {"code": 404, "message": f"The specified bucket {bucket} does not exist."}})
        if not rest:
            return self._send(200, {"kind": "storage#bucket", "name": bucket, "location": "US", "storageClass": "STANDARD"})
        if kind[:1] == ["upload"]:
            return self._upload(bucket, query, body)
        if len(rest) == 1:
            return self._send(200, storage.listing(bucket, query))
        return self._object(bucket, rest[1:], query)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _object(self, bucket, rest, query):
        storage, name = self.server.storage, rest[0]
        if self.command == "DELETE":
            return self._send(storage.delete(bucket, name, query.get("ifGenerationMatch")))
        about = storage.about(bucket, name)
        if about is None:
            return self._send(404, {"error": {"code": 404, "message": f"No such object: {bucket}/{name}"}})
        body = storage.objects[f"{bucket}/{name}"]
        if self.command == "POST":  # .../rewriteTo/b/BUCKET/o/NAME
            made = storage.put(rest[-3], rest[-1], body)
            return self._send(
                200, {"done": True, "resource": made, "objectSize": made["size"], "totalBytesRewritten": made["size"]}
            )
        if query.get("alt") != "media":
            return self._send(200, about)
        headers = {"x-goog-generation": about["generation"], "ETag": about["etag"]}
        if not self.headers.get("Range"):
            return self._send(200, body, headers)
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        begin = int(first) if first else max(0, len(body) - int(last))
        stop = min(len(body), int(last) + 1) if first and last else len(body)
        if begin >= len(body):
            return self._send(416)
        return self._send(206, body[begin:stop], {**headers, "Content-Range": f"bytes {begin}-{stop - 1}/{len(body)}"})

    def _upload(self, bucket, query, body):
        storage, kind = self.server.storage, query.get("uploadType")
        name, condition = query.get("name"), query.get("ifGenerationMatch")
        if kind == "multipart":
            about, body = _parts(self.headers["Content-Type"], body)
            name = about["name"]
        elif kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            where = f"http://{storage.address}{self.path}&upload_id={len(storage.uploads)}"
            storage.uploads[str(len(storage.uploads))] = (name, condition, bytearray())
            return self._send(200, {}, {"Location": where})
        elif kind == "resumable":
            name, condition, held = storage.uploads[query["upload_id"]]
            held += body
            total = self.headers.get("Content-Range", "").rpartition("/")[2]
            if total == "*" or (total and len(held) < int(total)):
                return self._send(308, b"", {"Range": f"bytes=0-{len(held) - 1}"} if held else {})
            body = bytes(held)
        made = storage.put(bucket, name, body, condition)
        return self._send(200, made) if made else self._send(412, {"error": {"code": 412, "message": "conditionNotMet"}})

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status, content=b"", headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json; charset=UTF-8"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _parts(content_type, body):
    """multipart/related -> (metadata, bytes of the object)."""
    text = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(text)
    mark = b"--" + message.get_boundary().encode()
    head, content = (piece.partition(b"\r\n\r\n") for piece in (body.split(mark)[1], body.split(mark, 2)[2]))
    return json.loads(head[2]), content[2][: content[2].rindex(b"\r\n" + mark)]
