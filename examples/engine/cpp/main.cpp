// Reads the ticks that Tapeline publishes to Kafka. It knows nothing of Tapeline but market_data.proto.

#include <getopt.h>
#include <librdkafka/rdkafkacpp.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "market_data.pb.h"

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
using tapeline::v1::MarketData;

volatile std::sig_atomic_t stopped = 0;

struct Options {
    std::string brokers = "localhost:9092";
    std::string topic = "market-data.normalized";
    std::string group = "engine";
    std::string from = "latest";
    std::uint64_t count = 0;
    Seconds idle{0};
    Seconds latency{0};
};

constexpr const char* kUsage =
    "usage: engine [--brokers ADDRESSES] [--topic TOPIC] [--group GROUP] [--from earliest|latest]\n"
    "              [--count N] [--idle SECONDS] [--latency SECONDS]\n"
    "  --brokers  Kafka's addresses, separated by commas (localhost:9092)\n"
    "  --topic    the topic to read (market-data.normalized)\n"
    "  --group    the consumer group, under whose name Kafka keeps the position (engine)\n"
    "  --from     where a new group begins (latest)\n"
    "  --count    stop after so many records (0: never)\n"
    "  --idle     stop after so many seconds without a record (0: never)\n"
    "  --latency  print latencies every so many seconds instead of records (0: records)\n";

double number(const char* text) {
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text || *end != '\0' || value < 0) throw std::runtime_error(std::string("not a number, or below zero: ") + text);
    return value;
}

Options parse(int argc, char** argv) {
    Options options;
    const option names[] = {
        {"brokers", required_argument, nullptr, 'b'}, {"topic", required_argument, nullptr, 't'},
        {"group", required_argument, nullptr, 'g'},   {"from", required_argument, nullptr, 'f'},
        {"count", required_argument, nullptr, 'c'},   {"idle", required_argument, nullptr, 'i'},
        {"latency", required_argument, nullptr, 'l'}, {"help", no_argument, nullptr, 'h'},
        {nullptr, 0, nullptr, 0},
    };
    for (int name; (name = getopt_long(argc, argv, "", names, nullptr)) != -1;) {
        switch (name) {
            case 'b': options.brokers = optarg; break;
            case 't': options.topic = optarg; break;
            case 'g': options.group = optarg; break;
            case 'f': options.from = optarg; break;
            case 'c': options.count = static_cast<std::uint64_t>(number(optarg)); break;
            case 'i': options.idle = Seconds(number(optarg)); break;
            case 'l': options.latency = Seconds(number(optarg)); break;
            case 'h': std::cout << kUsage; std::exit(0);
            default: std::cerr << kUsage; std::exit(2);
        }
    }
    return options;
}

// An engine's own work with a tick.
class Handler {
public:
    virtual ~Handler() = default;
    virtual void handle(const MarketData& tick) = 0;
    // Called at least ten times a second, and at the end.
    virtual void tell(bool end) = 0;
};

// Writes each tick as a line of CSV.
class Printer final : public Handler {
public:
    Printer() { std::cout << "symbol,ts_ns,kind,last,bid,ask,raw_partition,raw_offset,raw_index" << std::endl; }

    void handle(const MarketData& tick) override {
        line_.assign(tick.symbol()).append(1, ',');
        line_.append(std::to_string(tick.timestamp_ns())).append(1, ',');
        line_.append(tick.kind()).append(1, ',');
        price(tick.has_last_price(), tick.last_price());
        price(tick.has_bid(), tick.bid());
        price(tick.has_ask(), tick.ask());
        line_.append(std::to_string(tick.raw_partition())).append(1, ',');
        line_.append(std::to_string(tick.raw_offset())).append(1, ',');
        line_.append(std::to_string(tick.raw_index())).append(1, '\n');
        // The line must be out before its offset is stored.
        if (!(std::cout << line_ << std::flush)) throw std::runtime_error("cannot write to standard output");
    }

    void tell(bool) override {}

private:
    // An absent price is not zero: nothing stands between its commas. The digits are the shortest that mean the number.
    void price(bool present, double value) {
        char digits[32];
        if (present) line_.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
        line_.append(1, ',');
    }

    std::string line_;
};

// Counts ticks by the time from receipt to here, in steps of 10 µs up to 10 s: 4 MB, however many ticks come.
class Latencies final : public Handler {
public:
    explicit Latencies(Seconds every) : every_(std::chrono::duration_cast<Clock::duration>(every)), next_(Clock::now() + every_) {
        std::cout << "ticks,p50_ms,p99_ms,p99.9_ms" << std::endl;
    }

    void handle(const MarketData& tick) override {
        const auto now = std::chrono::system_clock::now().time_since_epoch();
        const std::int64_t waited = std::chrono::nanoseconds(now).count() - tick.received_ns();
        const std::int64_t last = static_cast<std::int64_t>(steps_.size()) - 1;
        ++steps_[static_cast<std::size_t>(std::clamp<std::int64_t>(waited / 10'000, 0, last))];
        ++ticks_;
    }

    void tell(bool end) override {
        if (!end && Clock::now() < next_) return;
        if (ticks_ > 0) {
            std::printf("%llu,%.2f,%.2f,%.2f\n", static_cast<unsigned long long>(ticks_), within(500), within(990), within(999));
            std::fflush(stdout);
        }
        std::fill(steps_.begin(), steps_.end(), 0);
        ticks_ = 0;
        next_ = Clock::now() + every_;
    }

private:
    // The time in ms within which so many of a thousand ticks came.
    double within(std::uint64_t permille) const {
        const std::uint64_t wanted = (ticks_ * permille + 999) / 1000;
        std::size_t step = 0;
        for (std::uint64_t seen = steps_[0]; seen < wanted; seen += steps_[step]) ++step;
        return static_cast<double>(step + 1) / 100;
    }

    std::vector<std::uint32_t> steps_ = std::vector<std::uint32_t>(1'000'000);
    std::uint64_t ticks_ = 0;
    Clock::duration every_;
    Clock::time_point next_;
};

std::unique_ptr<RdKafka::KafkaConsumer> connect(const Options& options) {
    std::string problem;
    const std::unique_ptr<RdKafka::Conf> conf(RdKafka::Conf::create(RdKafka::Conf::CONF_GLOBAL));
    const auto set = [&](const char* name, const std::string& value) {
        if (conf->set(name, value, problem) != RdKafka::Conf::CONF_OK) throw std::runtime_error(problem);
    };
    set("bootstrap.servers", options.brokers);
    set("group.id", options.group);
    set("auto.offset.reset", options.from);
    // Only what is committed: a transaction that fails is written again, and its ticks would come twice.
    set("isolation.level", "read_committed");
    // Commit what was handled, not what was fetched: after a crash, a tick may come again, but none is lost.
    set("enable.auto.offset.store", "false");
    set("auto.commit.interval.ms", "1000");
    // Kafka gives the partitions of a killed engine to the next one after 6 s. The default is 45 s.
    set("session.timeout.ms", "6000");
    set("heartbeat.interval.ms", "2000");
    // librdkafka would buffer up to 64 MB.
    set("queued.max.messages.kbytes", "16384");
    std::unique_ptr<RdKafka::KafkaConsumer> consumer(RdKafka::KafkaConsumer::create(conf.get(), problem));
    if (!consumer) throw std::runtime_error(problem);

    // Say at once what is wrong: the client would wait for the broker and the topic for ever.
    const std::unique_ptr<RdKafka::Topic> topic(RdKafka::Topic::create(consumer.get(), options.topic, nullptr, problem));
    RdKafka::Metadata* answer = nullptr;
    if (const auto error = consumer->metadata(false, topic.get(), &answer, 5'000)) {
        throw std::runtime_error("no Kafka broker answers at " + options.brokers + " (" + RdKafka::err2str(error) +
                                 "): start Kafka, or give its address with --brokers");
    }
    const std::unique_ptr<RdKafka::Metadata> metadata(answer);
    if (const auto error = metadata->topics()->front()->err()) {
        throw std::runtime_error("cannot read the topic " + options.topic + " at " + options.brokers + " (" + RdKafka::err2str(error) +
                                 "): start Tapeline, which creates it, or give its name with --topic");
    }
    if (const auto error = consumer->subscribe({options.topic})) throw std::runtime_error(RdKafka::err2str(error));
    return consumer;
}

void parse(const RdKafka::Message& record, MarketData& tick) {
    if (tick.ParseFromArray(record.payload(), static_cast<int>(record.len()))) return;
    throw std::runtime_error(record.topic_name() + ", partition " + std::to_string(record.partition()) + ", offset " +
                             std::to_string(record.offset()) +
                             " is no MarketData message: set Tapeline's stream.codecs.normalized to protobuf");
}

// Hands every record to `work` until a signal comes, enough records are handled, or none has come for long enough.
void consume(RdKafka::KafkaConsumer& consumer, Handler& work, const Options& options) {
    MarketData tick;
    std::uint64_t handled = 0;
    auto last = Clock::now();
    while (!stopped && (options.count == 0 || handled < options.count) &&
           (options.idle.count() == 0 || Clock::now() - last < options.idle)) {
        const std::unique_ptr<RdKafka::Message> record(consumer.consume(100));
        switch (record->err()) {
            case RdKafka::ERR_NO_ERROR: {
                parse(*record, tick);
                work.handle(tick);
                const std::unique_ptr<RdKafka::TopicPartition> next(
                    RdKafka::TopicPartition::create(record->topic_name(), record->partition(), record->offset() + 1));
                std::vector<RdKafka::TopicPartition*> position{next.get()};
                // This fails if another engine of the group has the partition by now. It then reads the record again.
                consumer.offsets_store(position);
                ++handled;
                last = Clock::now();
                break;
            }
            case RdKafka::ERR__TIMED_OUT:
                break;
            case RdKafka::ERR__TRANSPORT:
            case RdKafka::ERR__ALL_BROKERS_DOWN:
                std::cerr << "engine: " << record->errstr() << '\n';  // The client connects again by itself.
                break;
            default:
                throw std::runtime_error("reading " + options.topic + ": " + record->errstr());
        }
        work.tell(false);
    }
    work.tell(true);
}

void run(const Options& options) {
    const auto consumer = connect(options);
    std::unique_ptr<Handler> work;
    if (options.latency.count() > 0) {
        work = std::make_unique<Latencies>(options.latency);
    } else {
        work = std::make_unique<Printer>();
    }
    consume(*consumer, *work, options);
    const auto error = consumer->commitSync();
    consumer->close();
    if (error && error != RdKafka::ERR__NO_OFFSET) {  // There may be nothing new to commit.
        throw std::runtime_error("committing the position: " + RdKafka::err2str(error));
    }
}

}  // namespace

int main(int argc, char** argv) {
    const auto stop = [](int) { stopped = 1; };
    std::signal(SIGINT, stop);
    std::signal(SIGTERM, stop);
    try {
        run(parse(argc, argv));
    } catch (const std::exception& error) {
        std::cerr << "engine: " << error.what() << '\n';
        return 1;
    }
}
