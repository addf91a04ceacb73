package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/linkedin/goavro/v2"
	"github.com/twmb/franz-go/pkg/kgo"
)

// sampleSize is the number of events of each partition that are compared.
const sampleSize = 200

// sample checks the number of events on an output topic, and returns the first ones as
// JSON, by id, without their processing time.
func (b *bench) sample(ctx context.Context, topic string, total int64) (map[string]string, error) {
	codecs := map[string]*goavro.Codec{}
	for _, k := range b.kinds {
		codec, _, err := codecOf(k.name)
		if err != nil {
			return nil, err
		}
		codecs[k.name] = codec
	}
	seen := map[int32]int{}
	sample := map[string]string{}
	var faults firstError
	n, err := b.cluster.read(ctx, topic, func(r *kgo.Record) {
		if seen[r.Partition]++; seen[r.Partition] > sampleSize {
			return
		}
		name := "OrderCreated"
		if r.Key[0] == 'u' {
			name = "UserCreated"
		}
		native, rest, err := codecs[name].NativeFromBinary(r.Value[5:])
		if err != nil || len(rest) > 0 {
			faults.set(fmt.Errorf("%s offset %d: %d bytes after the event: %w", topic, r.Offset, len(rest), err))
			return
		}
		event := native.(map[string]any)
		delete(event["metadata"].(map[string]any), "processed_at")
		text, err := json.Marshal(event)
		faults.set(err)
		sample[event["id"].(string)] = string(text)
	})
	if err != nil {
		return nil, err
	}
	if n != total {
		return nil, fmt.Errorf("%d events on %s, want %d", n, topic, total)
	}
	return sample, faults.get()
}

// sameWork returns an error unless two variants wrote the same events.
func (b *bench) sameWork(one, other string) error {
	compared := 0
	for id, text := range b.samples[one] {
		switch second, ok := b.samples[other][id]; {
		case !ok:
		case second != text:
			return fmt.Errorf("variants %s and %s wrote different events:\n%s\n%s", one, other, text, second)
		default:
			compared++
		}
	}
	if compared == 0 {
		return fmt.Errorf("variants %s and %s have no event in common in their samples", one, other)
	}
	return nil
}

// fullLoad returns the rate of a variant in events per second at full load: this
// program sends events as fast as possible and reads the output at the same time.
func (b *bench) fullLoad(ctx context.Context, v variant, name string) (rate float64, err error) {
	_, rate, err = b.paced(ctx, v, name, 0, 0, 5*time.Second)
	return rate, err
}

// latency runs a variant at a rate and returns the 99th percentile of the time from the
// call of Produce to the receipt of the committed output record.
func (b *bench) latency(ctx context.Context, v variant, name string, rate float64) (p99 time.Duration, err error) {
	delays, _, err := b.paced(ctx, v, name, rate, 3*time.Second, 10*time.Second)
	if err != nil {
		return 0, err
	}
	logf("%-3s at %.0f events/s: median %v, p99 %v, max %v", v.key, rate, delays[len(delays)/2], delays[len(delays)*99/100], delays[len(delays)-1])
	return delays[len(delays)*99/100], nil
}

// paced runs a variant while this program sends events at a rate and reads the output.
// Rate 0 means as fast as possible. It returns the sorted delays of the events sent after
// the warm-up, and the number of events read per second.
func (b *bench) paced(ctx context.Context, v variant, name string, rate float64, warmup, length time.Duration) (delays []time.Duration, read float64, err error) {
	input, output := name+".events", name+".out"
	group, topics := name, []string{input, output}
	if v.pipeline != "" {
		group, topics = name+"-"+v.pipeline, append(topics, output+".dead_letters")
	}
	defer b.delete(topics...)
	for _, topic := range []string{input, output} {
		if err := b.cluster.create(ctx, topic); err != nil {
			return nil, 0, err
		}
	}
	c, err := b.start(v, group, input, output)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if stopped := c.stop(); err == nil {
			err = stopped
		}
	}()
	l := &load{kinds: b.kinds, rate: rate, warmup: warmup, length: length}
	l.reader, err = kgo.NewClient(kgo.SeedBrokers(b.cluster.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeTopics(output), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return nil, 0, err
	}
	defer l.reader.Close()
	l.writer, err = kgo.NewClient(kgo.SeedBrokers(b.cluster.brokers...), kgo.DefaultProduceTopic(input), kgo.ProducerLinger(0))
	if err != nil {
		return nil, 0, err
	}
	defer l.writer.Close()

	// Wait for the output of one event, so the group is ready when the clock starts.
	l.send(ctx)
	first, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := l.reader.PollFetches(first).Err(); err != nil {
		return nil, 0, err
	}
	l.received, l.began = 1, time.Now()
	total := make(chan int, 1)
	go l.sendAll(ctx, total)
	if err := l.receive(ctx, total, c.alive); err != nil {
		return nil, 0, err
	}
	slices.Sort(l.delays)
	if len(l.delays) == 0 {
		return nil, 0, fmt.Errorf("no events in %v", length)
	}
	return l.delays, float64(l.received) / time.Since(l.began).Seconds(), nil
}

// load sends events to a variant and receives its output. From began on, one goroutine
// runs sendAll and another one runs receive.
type load struct {
	kinds          []eventKind
	rate           float64 // events/s; 0 means as fast as possible
	warmup, length time.Duration
	reader, writer *kgo.Client
	began          time.Time

	sent     int             // owned by the goroutine of sendAll
	received int             // owned by the goroutine of receive
	delays   []time.Duration // owned by the goroutine of receive
	failed   firstError      // shared
}

// send sends the next event, with the current time in a header.
func (l *load) send(ctx context.Context) {
	r := event(l.kinds, l.sent)
	r.Headers = []kgo.RecordHeader{{Key: "sent", Value: strconv.AppendInt(nil, time.Now().UnixNano(), 10)}}
	l.writer.Produce(ctx, r, func(_ *kgo.Record, err error) { l.failed.set(err) })
	l.sent++
}

// sendAll sends events until the warm-up and the measurement are over, or ctx ends. It
// then closes total; before that, it sends the number of all events unless ctx ended.
func (l *load) sendAll(ctx context.Context, total chan<- int) {
	defer close(total)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		since := time.Since(l.began)
		if since >= l.warmup+l.length {
			total <- l.sent
			return
		}
		if l.rate == 0 { // the writer blocks while its buffer is full
			for range 100 {
				l.send(ctx)
			}
			continue
		}
		for due := int(l.rate * since.Seconds()); l.sent-1 < due; {
			l.send(ctx)
		}
		<-tick.C
	}
}

// receive reads the output until all events have arrived. At full load, it stops when the
// last event is sent, because the rest is read with less load. alive returns an error if
// the worker has ended.
func (l *load) receive(ctx context.Context, sent <-chan int, alive func() error) error {
	total := -1 // number of all events; -1 while they are still being sent
	for total < 0 || l.received < total {
		next, cancel := context.WithTimeout(ctx, time.Second)
		fetches := l.reader.PollFetches(next)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) { l.take(r, now) })
		if err := errors.Join(l.failed.get(), alive()); err != nil {
			return err
		}
		if now.Sub(l.began) > 4*(l.warmup+l.length) {
			return fmt.Errorf("the worker does not keep up: %d events sent, %d received", total, l.received)
		}
		if l.rate == 0 && total >= 0 {
			return nil
		}
		select {
		case n, ok := <-sent:
			if ok {
				total = n
			}
		default:
		}
	}
	return nil
}

// take counts an output record, and adds its delay if it was sent after the warm-up.
func (l *load) take(r *kgo.Record, now time.Time) {
	l.received++
	at, err := strconv.ParseInt(string(r.Headers[0].Value), 10, 64)
	l.failed.set(err)
	if when := time.Unix(0, at); when.Sub(l.began) >= l.warmup {
		l.delays = append(l.delays, now.Sub(when))
	}
}

// resident returns the peak resident memory of a process in MiB, or 0 if unknown.
func resident(s *os.ProcessState) float64 {
	if u, ok := s.SysUsage().(*syscall.Rusage); ok {
		return float64(u.Maxrss) / 1024
	}
	return 0
}

// profileOf starts to take a CPU profile of a processor, if profiles are requested. stop
// waits for the profile. Naive loops write their own profiles.
func (b *bench) profileOf(ctx context.Context, v variant) (stop func()) {
	if b.profile == "" || v.pipeline == "" {
		return func() {}
	}
	done := make(chan struct{})
	go func() { // ends with the profile
		defer close(done)
		if err := b.fetchProfile(ctx, filepath.Join(b.profile, v.key+".pprof")); err != nil {
			logf("cannot profile %s: %v", v.key, err)
		}
	}()
	return func() { <-done }
}

// fetchProfile writes a profile of five seconds to a file.
func (b *bench) fetchProfile(ctx context.Context, to string) error {
	var addr []byte
	file := filepath.Join(b.dir, "address")
	err := await(ctx, time.Minute, "waiting for the processor's address", func() (bool, error) {
		var err error
		addr, err = os.ReadFile(file)
		return err == nil && len(addr) > 0, nil
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+strings.TrimSpace(string(addr))+"/debug/pprof/profile?seconds=5", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, resp.Body)
	return err
}

// chain is the cost per event of filter, enrich and encode without Kafka.
type chain struct {
	nanos  float64 // nanoseconds
	allocs float64
}

var chainLine = regexp.MustCompile(`(BenchmarkChain[A-Za-z]*)\S*\s+\d+\s+([0-9.]+) ns/op.*?\s([0-9.]+) allocs/op`)

// chainAlone runs the Go benchmarks of the chain: with the events of the other steps, and
// with events that have a decimal and a nullable field.
func chainAlone(ctx context.Context) (doubles, decimals chain, err error) {
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkChain(Decimals)?$", "-benchmem", "millrace/pipeline/processor/chain").CombinedOutput()
	if err != nil {
		return doubles, decimals, fmt.Errorf("running BenchmarkChain: %w\n%s", err, out)
	}
	return chainsIn(out)
}

// chainsIn reads the output of the benchmarks.
func chainsIn(out []byte) (doubles, decimals chain, err error) {
	found := map[string]chain{}
	for _, m := range chainLine.FindAllSubmatch(out, -1) {
		var c chain
		var errs [2]error
		c.nanos, errs[0] = strconv.ParseFloat(string(m[2]), 64)
		c.allocs, errs[1] = strconv.ParseFloat(string(m[3]), 64)
		if err := errors.Join(errs[:]...); err != nil {
			return doubles, decimals, err
		}
		found[string(m[1])] = c
	}
	if len(found) != 2 {
		return doubles, decimals, fmt.Errorf("BenchmarkChain reported no allocations:\n%s", out)
	}
	return found["BenchmarkChain"], found["BenchmarkChainDecimals"], nil
}
