"""Prints what Spark reads of a folder of Parquet files: an object a row."""

import json
import sys

from pyspark.sql import SparkSession

spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.shuffle.partitions", "1")
    .getOrCreate()
)
for row in spark.read.parquet(sys.argv[1]).selectExpr("*", "unix_micros(ts) AS ts_us").drop("ts").orderBy("raw_offset").collect():
    print(json.dumps(row.asDict(), default=str))
spark.stop()
