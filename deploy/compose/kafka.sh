#!/bin/sh
# Starts Kafka; with the word "ready", asks it for its topics instead. The first start gives the storage its identity.
set -eu
properties=/etc/kafka/server.properties
run() {
    memory=$1
    shift
    java "-Xmx$memory" -XX:+UseSerialGC -cp "/opt/kafka/libs/*" "$@"
}
if [ "${1:-}" = ready ]; then
    run 128m -XX:TieredStopAtLevel=1 org.apache.kafka.tools.TopicCommand --bootstrap-server 127.0.0.1:9092 --list >/dev/null
    exit
fi
meta=/var/lib/kafka/data/log/meta.properties
if [ ! -f "$meta" ]; then
    cluster=$(run 128m kafka.tools.StorageTool random-uuid)
    run 256m kafka.tools.StorageTool format --cluster-id "$cluster" --config "$properties"
fi
exec java -Xmx1g -Xms1g -XX:+UseSerialGC -cp "/opt/kafka/libs/*" kafka.Kafka "$properties"
