// Engine reads the ticks that Tapeline publishes to Kafka. It knows nothing of Tapeline but market_data.proto.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"

	"example.com/engine/tapelinev1"
)

// go.mod pins the version of protoc-gen-go, so only protoc itself has to be installed.
//go:generate sh -c "protoc -I ../../../proto --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=. --go_opt=module=example.com/engine --go_opt=Mmarket_data.proto=example.com/engine/tapelinev1 market_data.proto"

// batchSize bounds how many records are handled before their offsets may be committed.
const batchSize = 1000

// A handler does an engine's own work with a tick. What handle wrote may be buffered until flush.
type handler interface {
	handle(tick *tapelinev1.MarketData) error
	flush(end bool) error
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		os.Exit(1)
	}
}

func run() error {
	brokers := flag.String("brokers", "localhost:9092", "Kafka's `addresses`, separated by commas")
	topic := flag.String("topic", "market-data.normalized", "the `topic` to read")
	group := flag.String("group", "engine", "the consumer group, under whose `name` Kafka keeps the position")
	from := flag.String("from", "latest", "where a new group begins: `earliest or latest`")
	count := flag.Int("count", 0, "stop after `N` records (0: never)")
	idle := flag.Float64("idle", 0, "stop after `SECONDS` without a record (0: never)")
	latency := flag.Float64("latency", 0, "print latencies every `SECONDS` instead of records (0: records)")
	flag.Parse()

	start := map[string]kgo.Offset{"earliest": kgo.NewOffset().AtStart(), "latest": kgo.NewOffset().AtEnd()}
	if _, known := start[*from]; !known {
		return fmt.Errorf("-from is %q: choose earliest or latest", *from)
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(*brokers, ",")...),
		kgo.ConsumeTopics(*topic),
		kgo.ConsumerGroup(*group),
		kgo.ConsumeResetOffset(start[*from]),
		// Only what is committed: a transaction that fails is written again, and its ticks would come twice.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Commit what was handled, not what was fetched: after a crash, a tick may come again, but none is lost.
		kgo.AutoCommitMarks(),
		kgo.AutoCommitInterval(time.Second),
		kgo.BlockRebalanceOnPoll(),
		// Kafka gives the partitions of a killed engine to the next one after 6 s. The default is 45 s.
		kgo.SessionTimeout(6*time.Second),
		kgo.HeartbeatInterval(2*time.Second),
	)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := check(ctx, client, *brokers, *topic); err != nil {
		return err
	}
	var work handler = newPrinter()
	if *latency > 0 {
		work = newLatencies(seconds(*latency))
	}
	if err := consume(ctx, client, work, *count, seconds(*idle)); err != nil {
		return err
	}
	// ctx has ended if a signal stopped us, so this needs a context of its own.
	last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return client.CommitMarkedOffsets(last)
}

// check says at once what is wrong. Without it, the client would wait for the broker and the topic for ever.
func check(ctx context.Context, client *kgo.Client, brokers, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		return fmt.Errorf("no Kafka broker answers at %s (%w): start Kafka, or give its address with -brokers", brokers, err)
	}
	request := kmsg.NewPtrMetadataRequest()
	request.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return fmt.Errorf("asking %s about the topic %s: %w", brokers, topic, err)
	}
	if err := kerr.ErrorForCode(response.Topics[0].ErrorCode); err != nil {
		return fmt.Errorf("cannot read the topic %s at %s (%w): start Tapeline, which creates it, or give its name with -topic", topic, brokers, err)
	}
	return nil
}

// consume hands every record to work until ctx ends, count records are handled, or none has come for idle.
func consume(ctx context.Context, client *kgo.Client, work handler, count int, idle time.Duration) error {
	var tick tapelinev1.MarketData
	handled, last := 0, time.Now()
	for ctx.Err() == nil && (count == 0 || handled < count) && (idle == 0 || time.Since(last) < idle) {
		most := batchSize
		if count > 0 {
			most = min(most, count-handled)
		}
		// Wait for a record, but not so long that idle or the next line of latencies is late.
		wait, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		fetches := client.PollRecords(wait, most)
		cancel()
		if err := failure(fetches); err != nil {
			return err
		}
		records := fetches.Records()
		for _, record := range records {
			if err := proto.Unmarshal(record.Value, &tick); err != nil {
				return fmt.Errorf("%s, partition %d, offset %d is no MarketData message (%w): set Tapeline's stream.codecs.normalized to protobuf",
					record.Topic, record.Partition, record.Offset, err)
			}
			if err := work.handle(&tick); err != nil {
				return err
			}
		}
		if err := work.flush(false); err != nil {
			return err
		}
		if len(records) > 0 {
			client.MarkCommitRecords(records...)
			handled, last = handled+len(records), time.Now()
		}
		client.AllowRebalance()
	}
	return work.flush(true)
}

// failure is nil for what passes by itself: nothing came in time, or the broker was away and the client joins again.
func failure(fetches kgo.Fetches) error {
	for _, fetch := range fetches.Errors() {
		var session *kgo.ErrGroupSession
		switch {
		case errors.Is(fetch.Err, context.DeadlineExceeded), errors.Is(fetch.Err, context.Canceled):
		case errors.As(fetch.Err, &session):
			fmt.Fprintln(os.Stderr, "engine:", fetch.Err)
		default:
			return fmt.Errorf("reading %s, partition %d: %w", fetch.Topic, fetch.Partition, fetch.Err)
		}
	}
	return nil
}

// printer writes each tick as a line of CSV.
type printer struct{ out *bufio.Writer }

func newPrinter() printer {
	out := bufio.NewWriter(os.Stdout)
	fmt.Fprintln(out, "symbol,ts_ns,kind,last,bid,ask,raw_partition,raw_offset,raw_index")
	return printer{out}
}

func (p printer) handle(tick *tapelinev1.MarketData) error {
	line := append(p.out.AvailableBuffer(), tick.Symbol...)
	line = strconv.AppendInt(append(line, ','), tick.TimestampNs, 10)
	line = append(append(line, ','), tick.Kind...)
	for _, price := range []*float64{tick.LastPrice, tick.Bid, tick.Ask} {
		line = append(line, ',')
		if price != nil { // An absent price is not zero.
			line = strconv.AppendFloat(line, *price, 'g', -1, 64)
		}
	}
	for _, number := range []int64{int64(tick.RawPartition), tick.RawOffset, int64(tick.RawIndex)} {
		line = strconv.AppendInt(append(line, ','), number, 10)
	}
	_, err := p.out.Write(append(line, '\n'))
	return err
}

func (p printer) flush(bool) error { return p.out.Flush() }

// latencies counts ticks by the time from receipt to here, in steps of 10 µs up to 10 s: 4 MB, however many ticks come.
type latencies struct {
	steps [1_000_000]uint32
	ticks int
	every time.Duration
	next  time.Time
}

func newLatencies(every time.Duration) *latencies {
	fmt.Println("ticks,p50_ms,p99_ms,p99.9_ms")
	return &latencies{every: every, next: time.Now().Add(every)}
}

func (l *latencies) handle(tick *tapelinev1.MarketData) error {
	step := (time.Now().UnixNano() - tick.ReceivedNs) / int64(10*time.Microsecond)
	l.steps[max(0, min(step, int64(len(l.steps)-1)))]++
	l.ticks++
	return nil
}

func (l *latencies) flush(end bool) error {
	if !end && time.Now().Before(l.next) {
		return nil
	}
	if l.ticks > 0 {
		fmt.Printf("%d,%.2f,%.2f,%.2f\n", l.ticks, l.within(500), l.within(990), l.within(999))
	}
	clear(l.steps[:])
	l.ticks, l.next = 0, time.Now().Add(l.every)
	return nil
}

// within is the time in ms within which so many of a thousand ticks came.
func (l *latencies) within(permille int) float64 {
	left := (l.ticks*permille + 999) / 1000
	for step, ticks := range l.steps {
		if left -= int(ticks); left <= 0 {
			return float64(step+1) / 100
		}
	}
	return 0
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
