"""Reads flat files as Polygon.io's documentation does it, by boto3: what it finds is a JSON line.

`python files.py URL KEY SECRET`: the listing, and of each object its lines, by one request and in ranges; or the code of the refusal.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

url, key, secret = sys.argv[1:]
retries = {"max_attempts": 4, "mode": "standard"}
session = boto3.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1")
s3 = session.client("s3", endpoint_url=url, config=Config(signature_version="s3v4", retries=retries))
try:
    found: dict[str, list[str]] = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="flatfiles", Prefix="us_stocks_sip"):
        for each in page.get("Contents", []):
            whole = s3.get_object(Bucket="flatfiles", Key=each["Key"])["Body"].read()
            assert len(whole) == each["Size"] == s3.head_object(Bucket="flatfiles", Key=each["Key"])["ContentLength"]
            with tempfile.TemporaryDirectory() as folder:
                in_parts = Path(folder) / "file"
                ranges = TransferConfig(multipart_threshold=1_000, multipart_chunksize=len(whole) // 3 + 1, io_chunksize=1_000)
                s3.download_file("flatfiles", each["Key"], str(in_parts), Config=ranges)
                assert in_parts.read_bytes() == whole
            found[each["Key"]] = gzip.decompress(whole).decode().splitlines()
    folders = s3.list_objects_v2(Bucket="flatfiles", Delimiter="/").get("CommonPrefixes", [])
    print(json.dumps({"found": found, "folders": [each["Prefix"] for each in folders]}))
except ClientError as error:
    print(json.dumps({"refused": error.response["Error"]["Code"]}))
