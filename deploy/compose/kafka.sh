#!/bin/sh
# Starts Kafka; with the word "ready", asks it for its topics instead. The first start gives the storage its identity.
set -eu
properties=/etc/kafka/server.properties
log=/var/lib/kafka/data/log
classes="/opt/kafka/libs/*"
logging=-Dlog4j2.configurationFile=/etc/kafka/log4j2.xml

tool() {
    java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$classes" "$@"
}

# A crash ends broker and controller together. A broker that comes back at once, with the partitions that it had, may forget that a
# transaction was just committed, and then its readers wait for ever. So after a crash a controller runs alone until it has noted
# that the broker is gone.
note_the_crash() {
    echo "Kafka was not stopped. Its controller first notes that the broker is gone."
    sed -e '/^advertised\.listeners=/d' -e '/^inter\.broker\.listener\.name=/d' -e 's/^process\.roles=.*/process.roles=controller/' \
        -e 's/^listeners=.*\(CONTROLLER:.*\)/listeners=\1/' "$properties" >/tmp/controller.properties
    printf 'broker.session.timeout.ms=500\nbroker.heartbeat.interval.ms=200\n' >>/tmp/controller.properties
    java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "$logging" -cp "$classes" kafka.Kafka /tmp/controller.properties \
        >/tmp/controller.log 2>&1 &
    controller=$!
    waited=0
    # If the broker crashed before it had begun to serve, there is nothing to note.
    until grep -q "Fencing broker 1" /tmp/controller.log || [ "$waited" -ge 30 ] || ! kill -0 "$controller" 2>/dev/null; do
        sleep 1
        waited=$((waited + 1))
    done
    grep "Fencing broker 1" /tmp/controller.log || echo "The controller had nothing to note in $waited s."
    kill "$controller" 2>/dev/null || true
    wait "$controller" || true
    rm -f /tmp/controller.log
}

if [ "${1:-}" = ready ]; then
    tool org.apache.kafka.tools.TopicCommand --bootstrap-server 127.0.0.1:9092 --list >/dev/null
    exit
fi
if [ ! -f "$log/meta.properties" ]; then
    cluster=$(tool kafka.tools.StorageTool random-uuid)
    tool kafka.tools.StorageTool format --cluster-id "$cluster" --config "$properties"
elif [ ! -f "$log/.kafka_cleanshutdown" ]; then
    note_the_crash
fi
exec java -Xmx1g -Xms1g -XX:+UseSerialGC "$logging" -cp "$classes" kafka.Kafka "$properties"
