import com.google.protobuf.InvalidProtocolBufferException;
import java.io.BufferedWriter;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStreamWriter;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import tapeline.v1.MarketData;

/**
 * Reads the ticks that Tapeline publishes to Kafka. It knows nothing of Tapeline but
 * market_data.proto.
 */
public final class Engine implements ConsumerRebalanceListener {
  private static final Map<String, String> DEFAULTS =
      Map.of(
          "--brokers", "localhost:9092", // Kafka's addresses, separated by commas
          "--topic", "market-data.normalized", // the topic to read
          "--group", "engine", // the consumer group, under whose name Kafka keeps the position
          "--from", "latest", // where a new group begins: earliest or latest
          "--count", "0", // stop after so many records (0: never)
          "--idle", "0", // stop after so many seconds without a record (0: never)
          "--latency", "0"); // print latencies every so many seconds instead (0: records)

  /** An engine's own work with a tick. What handle wrote may be buffered until flush. */
  private interface Handler {
    void handle(MarketData tick) throws IOException;

    void flush(boolean end) throws IOException;
  }

  private final KafkaConsumer<byte[], byte[]> consumer;
  private final String topic;
  private final Handler work;

  /**
   * Where to read each partition next. Only what was handled is committed: after a crash, a tick
   * may come again, but none is lost.
   */
  private final Map<TopicPartition, OffsetAndMetadata> handled = new HashMap<>();

  private final CountDownLatch done = new CountDownLatch(1);
  private volatile boolean stopped;

  private Engine(KafkaConsumer<byte[], byte[]> consumer, String topic, Handler work) {
    this.consumer = consumer;
    this.topic = topic;
    this.work = work;
  }

  public static void main(String[] arguments) {
    try {
      run(options(arguments));
    } catch (IOException | IllegalArgumentException | IllegalStateException | KafkaException e) {
      System.err.println("engine: " + e.getMessage());
      System.exit(1);
    }
  }

  private static Map<String, String> options(String[] arguments) {
    Map<String, String> options = new HashMap<>(DEFAULTS);
    for (int at = 0; at < arguments.length; at += 2) {
      if (!DEFAULTS.containsKey(arguments[at]) || at + 1 == arguments.length) {
        throw new IllegalArgumentException("the options are, each with a value: " + DEFAULTS);
      }
      options.put(arguments[at], arguments[at + 1]);
    }
    return options;
  }

  private static void run(Map<String, String> options) throws IOException {
    String topic = options.get("--topic");
    double latency = Double.parseDouble(options.get("--latency"));
    try (KafkaConsumer<byte[], byte[]> consumer = connect(options)) {
      check(consumer, options.get("--brokers"), topic);
      Handler work = latency > 0 ? new Latencies(latency) : new Printer();
      Engine engine = new Engine(consumer, topic, work);
      Runtime.getRuntime().addShutdownHook(new Thread(engine::stop));
      long count = Long.parseLong(options.get("--count"));
      double idle = Double.parseDouble(options.get("--idle"));
      try {
        engine.consume(count, idle);
      } finally {
        engine.done.countDown();
      }
    }
  }

  private static KafkaConsumer<byte[], byte[]> connect(Map<String, String> options) {
    return new KafkaConsumer<>(
        Map.of(
            "bootstrap.servers", options.get("--brokers"),
            "group.id", options.get("--group"),
            "auto.offset.reset", options.get("--from"),
            // Only what is committed: a transaction that fails is written again, and its
            // ticks would come twice.
            "isolation.level", "read_committed",
            "enable.auto.commit", "false",
            // Kafka gives the partitions of a killed engine to the next one after 6 s, not 45 s.
            "session.timeout.ms", "6000",
            "heartbeat.interval.ms", "2000"),
        new ByteArrayDeserializer(),
        new ByteArrayDeserializer());
  }

  /** Says at once what is wrong. The client alone would wait for ever. */
  private static void check(KafkaConsumer<byte[], byte[]> consumer, String brokers, String topic) {
    List<?> partitions;
    try {
      partitions = consumer.partitionsFor(topic, Duration.ofSeconds(5));
    } catch (KafkaException e) {
      String remedy = "): start Kafka, or give its address with --brokers";
      String reason = " (" + e.getMessage() + remedy;
      throw new IllegalStateException("no Kafka broker answers at " + brokers + reason, e);
    }
    if (partitions == null || partitions.isEmpty()) {
      String remedy = ": start Tapeline, which creates it, or give its name with --topic";
      String place = topic + " at " + brokers + " (it does not exist)";
      throw new IllegalStateException("cannot read the topic " + place + remedy);
    }
  }

  /**
   * Handles every record until a signal comes, count records are handled, or none has come for idle
   * seconds.
   */
  private void consume(long count, double idle) throws IOException {
    consumer.subscribe(List.of(topic), this);
    long records = 0;
    long last = System.nanoTime();
    long committed = last;
    while (!stopped
        && (count == 0 || records < count)
        && (idle == 0 || System.nanoTime() - last < idle * 1e9)) {
      for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
        if (count > 0 && records == count) {
          break; // What is left of the batch is not handled, so it is not committed.
        }
        work.handle(parse(record));
        TopicPartition partition = new TopicPartition(record.topic(), record.partition());
        long next = record.offset() + 1;
        handled.put(partition, new OffsetAndMetadata(next, record.leaderEpoch(), ""));
        records++;
        last = System.nanoTime();
      }
      work.flush(false);
      if (System.nanoTime() - committed > 1_000_000_000L) {
        consumer.commitAsync(handled, null);
        committed = System.nanoTime();
      }
    }
    work.flush(true);
    consumer.commitSync(handled);
  }

  private static MarketData parse(ConsumerRecord<byte[], byte[]> record) {
    try {
      return MarketData.parseFrom(record.value());
    } catch (InvalidProtocolBufferException e) {
      String partition = record.topic() + ", partition " + record.partition();
      String place = partition + ", offset " + record.offset();
      String remedy = "): set Tapeline's stream.codecs.normalized to protobuf";
      String reason = " is no MarketData message (" + e.getMessage();
      throw new IllegalStateException(place + reason + remedy, e);
    }
  }

  @Override
  public void onPartitionsAssigned(Collection<TopicPartition> partitions) {}

  /** Called within poll, when everything that was polled before is handled. */
  @Override
  public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
    consumer.commitSync(handled);
    handled.keySet().removeAll(partitions);
  }

  @Override
  public void onPartitionsLost(Collection<TopicPartition> partitions) {
    // Another engine has them, so their position is no longer ours to commit.
    handled.keySet().removeAll(partitions);
  }

  /** Runs when a signal ends the program, and lets it commit first. */
  private void stop() {
    stopped = true;
    try {
      done.await(10, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** Writes each tick as a line of CSV. */
  private static final class Printer implements Handler {
    // Unlike System.out, it says when a line cannot be written: its offset must not be committed.
    private final Writer out =
        new BufferedWriter(
            new OutputStreamWriter(
                new FileOutputStream(FileDescriptor.out), StandardCharsets.UTF_8));

    Printer() throws IOException {
      out.write("symbol,ts_ns,kind,last,bid,ask,raw_partition,raw_offset,raw_index\n");
      out.flush();
    }

    @Override
    public void handle(MarketData tick) throws IOException {
      // An absent price is not zero: nothing stands between its commas.
      String last = tick.hasLastPrice() ? Double.toString(tick.getLastPrice()) : "";
      String bid = tick.hasBid() ? Double.toString(tick.getBid()) : "";
      String ask = tick.hasAsk() ? Double.toString(tick.getAsk()) : "";
      String event = tick.getSymbol() + "," + tick.getTimestampNs() + "," + tick.getKind();
      String id = tick.getRawPartition() + "," + tick.getRawOffset() + "," + tick.getRawIndex();
      out.write(event + "," + last + "," + bid + "," + ask + "," + id + "\n");
    }

    @Override
    public void flush(boolean end) throws IOException {
      out.flush();
    }
  }

  /**
   * Counts ticks by the time from receipt to here, in steps of 10 µs up to 10 s: 4 MB, however many
   * ticks come.
   */
  private static final class Latencies implements Handler {
    private final int[] steps = new int[1_000_000];
    private final long every;
    private long ticks;
    private long next;

    Latencies(double seconds) {
      every = (long) (seconds * 1e9);
      next = System.nanoTime() + every;
      System.out.println("ticks,p50_ms,p99_ms,p99.9_ms");
    }

    @Override
    public void handle(MarketData tick) {
      Instant now = Instant.now();
      long waited = now.getEpochSecond() * 1_000_000_000L + now.getNano() - tick.getReceivedNs();
      steps[(int) Math.max(0, Math.min(waited / 10_000, steps.length - 1))]++;
      ticks++;
    }

    @Override
    public void flush(boolean end) {
      if (!end && System.nanoTime() < next) {
        return;
      }
      if (ticks > 0) {
        double p50 = within(500);
        double p99 = within(990);
        double p999 = within(999);
        System.out.printf(Locale.ROOT, "%d,%.2f,%.2f,%.2f%n", ticks, p50, p99, p999);
      }
      Arrays.fill(steps, 0);
      ticks = 0;
      next = System.nanoTime() + every;
    }

    /** The time in ms within which so many of a thousand ticks came. */
    private double within(long permille) {
      long left = (ticks * permille + 999) / 1000;
      int step = 0;
      while ((left -= steps[step]) > 0) {
        step++;
      }
      return (step + 1) / 100.0;
    }
  }
}
