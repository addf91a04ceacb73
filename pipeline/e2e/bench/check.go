package main

import (
	"context"
	"encoding/json"
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

// sampleSize is how many events of each partition are compared.
const sampleSize = 200

// sample makes sure that all events are on the output topic once, and returns the
// first ones as JSON, by id, without the time at which they were processed.
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
			faults.set(fmt.Errorf("%s offset %d: %d bytes are left: %w", topic, r.Offset, len(rest), err))
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
		return nil, fmt.Errorf("%d events are on %s, not %d", n, topic, total)
	}
	return sample, faults.get()
}

// sameWork makes sure that two variants wrote the same events.
func (b *bench) sameWork(one, other string) error {
	compared := 0
	for id, text := range b.samples[one] {
		switch second, ok := b.samples[other][id]; {
		case !ok:
		case second != text:
			return fmt.Errorf("variants %s and %s do not do the same:\n%s\n%s", one, other, text, second)
		default:
			compared++
		}
	}
	if compared == 0 {
		return fmt.Errorf("variants %s and %s have no event in common among their first", one, other)
	}
	return nil
}

// fullLoad returns how many events a second a variant handles that are sent, as
// fast as can be, and read back meanwhile: all on this machine.
func (b *bench) fullLoad(ctx context.Context, v variant, name string) (rate float64, err error) {
	_, rate, err = b.paced(ctx, v, name, 0, 0, 5*time.Second)
	return rate, err
}

// latency runs a variant at a rate and returns how long events take from the
// producer's call to a reader of committed records, at the 99th percentile.
func (b *bench) latency(ctx context.Context, v variant, name string, rate float64) (p99 time.Duration, err error) {
	delays, _, err := b.paced(ctx, v, name, rate, 3*time.Second, 10*time.Second)
	if err != nil {
		return 0, err
	}
	say("%-3s at %.0f events/s: median %v, p99 %v, most %v", v.key, rate, delays[len(delays)/2], delays[len(delays)*99/100], delays[len(delays)-1])
	return delays[len(delays)*99/100], nil
}

// paced sends events at a rate, or as fast as can be if it is 0, while a variant
// runs and its output is read. It returns how long those took that were sent
// after the warm-up, in order of time, and how many were read per second.
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
	reader, err := kgo.NewClient(kgo.SeedBrokers(b.cluster.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeTopics(output), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return nil, 0, err
	}
	defer reader.Close()
	writer, err := kgo.NewClient(kgo.SeedBrokers(b.cluster.brokers...), kgo.DefaultProduceTopic(input), kgo.ProducerLinger(0))
	if err != nil {
		return nil, 0, err
	}
	defer writer.Close()

	// One event first, so that the group is there when time begins to count.
	sent := 0
	var failed firstError
	send := func() {
		r := event(b.kinds, sent)
		r.Headers = []kgo.RecordHeader{{Key: "sent", Value: strconv.AppendInt(nil, time.Now().UnixNano(), 10)}}
		writer.Produce(ctx, r, func(_ *kgo.Record, err error) { failed.set(err) })
		sent++
	}
	send()
	first, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := reader.PollFetches(first).Err(); err != nil {
		return nil, 0, err
	}
	began := time.Now()
	all := make(chan int, 1)
	go func() { // ends with the last event sent, or ctx
		defer close(all)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			since := time.Since(began)
			if since >= warmup+length {
				all <- sent
				return
			}
			if rate == 0 { // as fast as the writer takes them
				for range 100 {
					send()
				}
				continue
			}
			for due := int(rate * since.Seconds()); sent-1 < due; {
				send()
			}
			<-tick.C
		}
	}()
	total, got := -1, 1
	for total < 0 || got < total {
		next, cancel := context.WithTimeout(ctx, time.Second)
		fetches := reader.PollFetches(next)
		cancel()
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) {
			got++
			at, err := strconv.ParseInt(string(r.Headers[0].Value), 10, 64)
			failed.set(err)
			if when := time.Unix(0, at); when.Sub(began) >= warmup {
				delays = append(delays, now.Sub(when))
			}
		})
		if err := failed.get(); err != nil {
			return nil, 0, err
		}
		if err := c.alive(); err != nil {
			return nil, 0, err
		}
		if now.Sub(began) > 4*(warmup+length) {
			return nil, 0, fmt.Errorf("it does not keep up: %d events sent, %d came", total, got)
		}
		if rate == 0 && total >= 0 {
			break // while they were sent, for what is left is read with less to do
		}
		select {
		case n, ok := <-all:
			if ok {
				total = n
			}
		default:
		}
	}
	slices.Sort(delays)
	if len(delays) == 0 {
		return nil, 0, fmt.Errorf("no events in %v", length)
	}
	return delays, float64(got) / time.Since(began).Seconds(), nil
}

// resident returns how much memory a process had at most, in MiB.
func resident(s *os.ProcessState) float64 {
	if u, ok := s.SysUsage().(*syscall.Rusage); ok {
		return float64(u.Maxrss) / 1024
	}
	return 0
}

// profileOf takes a CPU profile of a processor while it works. Naive loops write
// theirs themselves.
func (b *bench) profileOf(ctx context.Context, v variant) (stop func()) {
	if b.profile == "" || v.pipeline == "" {
		return func() {}
	}
	done := make(chan struct{})
	go func() { // ends with the profile
		defer close(done)
		if err := b.fetchProfile(ctx, filepath.Join(b.profile, v.key+".pprof")); err != nil {
			say("no profile of %s: %v", v.key, err)
		}
	}()
	return func() { <-done }
}

func (b *bench) fetchProfile(ctx context.Context, to string) error {
	var addr []byte
	file := filepath.Join(b.dir, "address")
	err := await(ctx, time.Minute, "the address of the processor", func() (bool, error) {
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

// chain is what filter, enrich and encode cost without Kafka.
type chain struct {
	nanos  float64
	allocs float64
}

var chainLine = regexp.MustCompile(`BenchmarkChain\S*\s+\d+\s+([0-9.]+) ns/op.*?\s([0-9.]+) allocs/op`)

// chainAlone runs the Go benchmark of the chain.
func chainAlone(ctx context.Context) (c chain, err error) {
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkChain$", "-benchmem", "millrace/pipeline/processor/chain").CombinedOutput()
	if err != nil {
		return c, fmt.Errorf("the benchmark of the chain: %w\n%s", err, out)
	}
	m := chainLine.FindSubmatch(out)
	if m == nil {
		return c, fmt.Errorf("the benchmark of the chain said nothing of allocations:\n%s", out)
	}
	if c.nanos, err = strconv.ParseFloat(string(m[1]), 64); err != nil {
		return c, err
	}
	c.allocs, err = strconv.ParseFloat(string(m[2]), 64)
	return c, err
}
