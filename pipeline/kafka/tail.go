package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// A Tail reads the committed records of a whole topic, without a group: from the
// start of each partition to its end, and on as records come.
type Tail struct {
	cfg   Config
	topic string
	since time.Time     // of what is older, nothing is read; zero: everything is
	looks time.Duration // how often it looks for partitions that were added

	mu     sync.Mutex
	next   map[int32]int64 // offset to be read next
	target map[int32]int64 // where the partition ended when Run was called first
	end    map[int32]int64 // where its committed records end, as far as is known
	loaded chan struct{}   // closed when every partition has been read up to its target
	known  bool            // what is above
	err    error           // with which Run ended last, if it does not go on
}

// NewTail returns a Tail of a topic.
func NewTail(cfg Config, topic string) *Tail {
	return &Tail{cfg: cfg, topic: topic, looks: time.Minute, next: map[int32]int64{}, loaded: make(chan struct{})}
}

// NewTailSince returns a Tail of the records of a topic from the first one on that
// has a time, or a later one, in each partition.
func NewTailSince(cfg Config, topic string, since time.Time) *Tail {
	t := NewTail(cfg, topic)
	t.since = since
	return t
}

// Loaded returns a channel that is closed when everything has been handed on that
// was in the topic when Run was first called.
func (t *Tail) Loaded() <-chan struct{} { return t.loaded }

// Lag returns how many offsets have yet to be read; ok is false as long as that
// is not known.
func (t *Tail) Lag() (n int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, next := range t.next {
		n += max(0, max(t.end[p], t.target[p])-next)
	}
	return n, t.known
}

// Err returns why the last Run has ended, nil if another goes on.
func (t *Tail) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Run calls f with each record, in order within a partition; record and bytes are
// valid only during the call. It returns nil when the context ends, and otherwise
// the error of f or the trouble with the topic. It may then be called again, and
// goes on behind the last record that f took without an error.
func (t *Tail) Run(ctx context.Context, f func(*pipeline.Record) error) (err error) {
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.err = err
	}()
	opts, err := t.cfg.Options()
	if err != nil {
		return &pipeline.FatalError{Err: err}
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxBytes(16<<20),
		kgo.MetadataMinAge(250*time.Millisecond), // after a moved leader, look again soon
	)...)
	if err != nil {
		return &pipeline.FatalError{Err: err}
	}
	defer cl.Close()
	from, err := t.begin(ctx, kadm.NewClient(cl))
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading topic %s: %w", t.topic, err)
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{t.topic: from})
	looked := time.Now()
	for {
		poll, cancel := context.WithDeadline(ctx, looked.Add(t.looks))
		fetches := cl.PollFetches(poll)
		late := poll.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if late {
			starts, err := kadm.NewClient(cl).ListStartOffsets(ctx, t.topic)
			if err == nil && len(starts[t.topic]) > len(from) {
				return fmt.Errorf("topic %s has %d partitions now, not %d: reading it anew", t.topic, len(starts[t.topic]), len(from))
			}
			looked = time.Now()
			fetches = withoutDeadline(fetches)
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading topic %s: %w", t.topic, err)
		}
		for _, fetch := range fetches {
			for _, topic := range fetch.Topics {
				for i := range topic.Partitions {
					if err := t.take(&topic.Partitions[i], f); err != nil {
						return err
					}
				}
			}
		}
	}
}

// withoutDeadline leaves out what only says that the poll has ended.
func withoutDeadline(fetches kgo.Fetches) (out kgo.Fetches) {
	for _, f := range fetches {
		if len(f.Topics) != 1 || len(f.Topics[0].Partitions) != 1 || !errors.Is(f.Topics[0].Partitions[0].Err, context.DeadlineExceeded) {
			out = append(out, f)
		}
	}
	return out
}

// begin finds out where the partitions begin and end.
func (t *Tail) begin(ctx context.Context, adm *kadm.Client) (map[int32]kgo.Offset, error) {
	starts, err := adm.ListStartOffsets(ctx, t.topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, err
	}
	if !t.since.IsZero() && t.target == nil {
		if starts, err = adm.ListOffsetsAfterMilli(ctx, t.since.UnixMilli(), t.topic); err == nil {
			err = starts.Error()
		}
		if err != nil {
			return nil, err
		}
	}
	// The very ends, not those of committed records: what is being committed
	// while we start counts as there.
	ends, err := adm.ListEndOffsets(ctx, t.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.target == nil
	if first {
		t.target, t.end = map[int32]int64{}, map[int32]int64{}
	}
	from := map[int32]kgo.Offset{}
	for p, start := range starts[t.topic] {
		end, _ := ends.Lookup(t.topic, p)
		if t.next[p] > end.Offset {
			return nil, pipeline.Fatal("partition %d ends at offset %d, but was read up to %d: the topic was deleted and made anew, or truncated. Restart, to read it from its start", p, end.Offset, t.next[p])
		}
		t.next[p] = max(t.next[p], start.Offset)
		if first {
			t.target[p] = end.Offset
		}
		from[p] = kgo.NewOffset().At(t.next[p])
	}
	if len(from) == 0 {
		t.target, t.end = nil, nil
		return nil, fmt.Errorf("it does not exist")
	}
	t.known, t.err = true, nil
	t.check()
	return from, nil
}

// take hands on the records of one partition.
func (t *Tail) take(p *kgo.FetchPartition, f func(*pipeline.Record) error) (err error) {
	var in pipeline.Record
	next := int64(-1)
	for _, r := range p.Records {
		if !r.Attrs.IsControl() {
			in = pipeline.Record{Topic: t.topic, Partition: p.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: in.Headers[:0], Time: r.Timestamp}
			for _, h := range r.Headers {
				in.Headers = append(in.Headers, pipeline.Header(h))
			}
			if err = f(&in); err != nil {
				break
			}
		}
		next = r.Offset + 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if next >= 0 {
		t.next[p.Partition] = next
	}
	t.end[p.Partition] = max(t.end[p.Partition], p.LastStableOffset)
	t.check()
	return err
}

// check closes loaded when the time has come. The caller has the lock.
func (t *Tail) check() {
	select {
	case <-t.loaded:
		return
	default:
	}
	for p, target := range t.target {
		if t.next[p] < target {
			return
		}
	}
	close(t.loaded)
}
