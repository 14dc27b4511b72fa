//! Reads the ticks that Tapeline publishes to Kafka. It knows nothing of Tapeline but market_data.proto.

use std::fmt::Write as _;
use std::io::{self, StdoutLock, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use signal_hook::consts::{SIGINT, SIGTERM};

use tapeline::MarketData;

#[allow(dead_code)] // The messages of the other topics are not used here.
mod tapeline {
    include!(concat!(env!("OUT_DIR"), "/tapeline.v1.rs"));
}

#[derive(Parser)]
#[command(about)]
struct Options {
    /// Kafka's addresses, separated by commas
    #[arg(long, default_value = "localhost:9092")]
    brokers: String,
    /// The topic to read
    #[arg(long, default_value = "market-data.normalized")]
    topic: String,
    /// The consumer group, under whose name Kafka keeps the position
    #[arg(long, default_value = "engine")]
    group: String,
    /// Where a new group begins
    #[arg(long, default_value = "latest")]
    from: From,
    /// Stop after so many records (0: never)
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Stop after so many seconds without a record (0: never)
    #[arg(long, default_value_t = 0.0)]
    idle: f64,
    /// Print latencies every so many seconds instead of records (0: records)
    #[arg(long, default_value_t = 0.0)]
    latency: f64,
}

#[derive(Clone, ValueEnum)]
enum From {
    Earliest,
    Latest,
}

/// An engine's own work with a tick.
trait Handler {
    fn handle(&mut self, tick: &MarketData) -> io::Result<()>;

    /// Called at least ten times a second, and at the end.
    fn tell(&mut self, end: bool) -> io::Result<()>;
}

fn main() -> Result<()> {
    let options = Options::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let consumer = connect(&options)?;
    let mut work: Box<dyn Handler> = if options.latency > 0.0 {
        Box::new(Latencies::new(Duration::from_secs_f64(options.latency))?)
    } else {
        Box::new(Printer::new()?)
    };
    consume(&consumer, work.as_mut(), &options, &stop)?;
    match consumer.commit_consumer_state(CommitMode::Sync) {
        // There may be nothing new to commit.
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
        done => done.context("committing the position"),
    }
}

fn connect(options: &Options) -> Result<BaseConsumer> {
    let from = match options.from {
        From::Earliest => "earliest",
        From::Latest => "latest",
    };
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &options.brokers)
        .set("group.id", &options.group)
        .set("auto.offset.reset", from)
        // Only what is committed: a transaction that fails is written again, and its
        // ticks would come twice.
        .set("isolation.level", "read_committed")
        // Commit what was handled, not what was fetched: after a crash, a tick may come again, but
        // none is lost.
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "1000")
        // Kafka gives the partitions of a killed engine to the next one after 6 s, not 45 s.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "2000")
        // librdkafka would buffer up to 64 MB.
        .set("queued.max.messages.kbytes", "16384")
        .create()?;

    // Say at once what is wrong: the client would wait for the broker and the topic for ever.
    let (brokers, topic) = (&options.brokers, &options.topic);
    let metadata = consumer
        .fetch_metadata(Some(topic), Duration::from_secs(5))
        .with_context(|| {
            format!(
                "no Kafka broker answers at {brokers}: start Kafka, or give its address with --brokers"
            )
        })?;
    if let Some(error) = metadata.topics()[0].error() {
        let error = RDKafkaErrorCode::from(error);
        bail!(
            "cannot read the topic {topic} at {brokers} ({error}): \
             start Tapeline, which creates it, or give its name with --topic"
        );
    }
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}

/// Hands every record to `work` until `stop` is set, enough records are handled, or none has come
/// for long enough.
fn consume(
    consumer: &BaseConsumer,
    work: &mut dyn Handler,
    options: &Options,
    stop: &AtomicBool,
) -> Result<()> {
    let (mut handled, mut last) = (0, Instant::now());
    while !stop.load(Ordering::Relaxed)
        && (options.count == 0 || handled < options.count)
        && (options.idle == 0.0 || last.elapsed().as_secs_f64() < options.idle)
    {
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            // The client connects again by itself.
            Some(Err(error)) if error.rdkafka_error_code().is_some_and(passes) => {
                eprintln!("engine: {error}")
            }
            Some(Err(error)) => {
                return Err(error).with_context(|| format!("reading {}", options.topic));
            }
            Some(Ok(record)) => {
                let tick = MarketData::decode(record.payload().unwrap_or_default()).with_context(|| {
                    let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
                    format!(
                        "{topic}, partition {partition}, offset {offset} is no MarketData message: \
                         set Tapeline's stream.codecs.normalized to protobuf"
                    )
                })?;
                work.handle(&tick)?;
                consumer.store_offset_from_message(&record)?;
                (handled, last) = (handled + 1, Instant::now());
            }
        }
        work.tell(false)?;
    }
    Ok(work.tell(true)?)
}

fn passes(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    matches!(
        code,
        AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve
    )
}

/// Writes each tick as a line of CSV.
struct Printer {
    out: StdoutLock<'static>,
    line: String,
}

impl Printer {
    fn new() -> io::Result<Self> {
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "symbol,ts_ns,kind,last,bid,ask,raw_partition,raw_offset,raw_index"
        )?;
        Ok(Self {
            out,
            line: String::new(),
        })
    }
}

impl Handler for Printer {
    fn handle(&mut self, tick: &MarketData) -> io::Result<()> {
        self.line.clear();
        // An absent price is not zero: nothing stands between its commas.
        let price = |price: Option<f64>| price.map_or(String::new(), |price| price.to_string());
        writeln!(
            self.line,
            "{},{},{},{},{},{},{},{},{}",
            tick.symbol,
            tick.timestamp_ns,
            tick.kind,
            price(tick.last_price),
            price(tick.bid),
            price(tick.ask),
            tick.raw_partition,
            tick.raw_offset,
            tick.raw_index
        )
        .expect("a String takes everything");
        // The line must be out before its offset is stored.
        self.out.write_all(self.line.as_bytes())?;
        self.out.flush()
    }

    fn tell(&mut self, _end: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Counts ticks by the time from receipt to here, in steps of 10 µs up to 10 s: 4 MB, however many
/// ticks come.
struct Latencies {
    steps: Vec<u32>,
    ticks: usize,
    every: Duration,
    next: Instant,
}

impl Latencies {
    fn new(every: Duration) -> io::Result<Self> {
        writeln!(io::stdout(), "ticks,p50_ms,p99_ms,p99.9_ms")?;
        Ok(Self {
            steps: vec![0; 1_000_000],
            ticks: 0,
            every,
            next: Instant::now() + every,
        })
    }

    /// The time in ms within which so many of a thousand ticks came.
    fn within(&self, permille: usize) -> f64 {
        let wanted = (self.ticks * permille).div_ceil(1000);
        let mut seen = 0;
        let step = self.steps.iter().position(|&ticks| {
            seen += ticks as usize;
            seen >= wanted
        });
        (step.unwrap_or(0) + 1) as f64 / 100.0
    }
}

impl Handler for Latencies {
    fn handle(&mut self, tick: &MarketData) -> io::Result<()> {
        let now = SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |now| now.as_nanos() as i64);
        let step = (now - tick.received_ns) / 10_000;
        let last = self.steps.len() as i64 - 1;
        self.steps[step.clamp(0, last) as usize] += 1;
        self.ticks += 1;
        Ok(())
    }

    fn tell(&mut self, end: bool) -> io::Result<()> {
        if !end && Instant::now() < self.next {
            return Ok(());
        }
        if self.ticks > 0 {
            let (p50, p99, p999) = (self.within(500), self.within(990), self.within(999));
            writeln!(io::stdout(), "{},{p50:.2},{p99:.2},{p999:.2}", self.ticks)?;
        }
        self.steps.fill(0);
        (self.ticks, self.next) = (0, Instant::now() + self.every);
        Ok(())
    }
}
