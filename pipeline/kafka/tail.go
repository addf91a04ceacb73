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

// A Tail reads the committed records of a whole topic without a group, from the
// start of each partition, and continues as records arrive. One goroutine calls Run;
// the other methods are safe for concurrent use.
type Tail struct {
	cfg     Config
	topic   string
	since   time.Time     // older records are skipped; zero: none are
	recheck time.Duration // how often Run checks for added partitions

	progress progress

	mu     sync.Mutex      // guards the fields below; progress and link are locked after it
	target map[int32]int64 // end of the partition at the first call of Run; nil before it
	loaded chan struct{}   // closed when every partition has been read up to its target
	known  bool            // whether the offsets above have been read
	err    error           // error of the last Run; nil while Run works
	taking bool            // err is of a record or a fetch: it stays until these work again
	link   *link           // of the client; nil while Run does not run
	id     string          // of the topic at the first call of Run
}

// NewTail returns a Tail of a topic.
func NewTail(cfg Config, topic string) *Tail {
	return &Tail{cfg: cfg, topic: topic, recheck: time.Minute, loaded: make(chan struct{})}
}

// NewTailSince returns a Tail that starts, in each partition, at the first record
// with a timestamp of since or later.
func NewTailSince(cfg Config, topic string, since time.Time) *Tail {
	t := NewTail(cfg, topic)
	t.since = since
	return t
}

// Loaded returns a channel that is closed when all records that were in the topic at
// the first call of Run have been passed on.
func (t *Tail) Loaded() <-chan struct{} { return t.loaded }

// TopicID returns the id of the topic that is read, "" until the first Run has begun.
func (t *Tail) TopicID() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.id
}

// Lag returns how many offsets remain to be read. ok is false while that is unknown.
func (t *Tail) Lag() (n int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, at := range t.progress.all() {
		n += max(0, max(at.End, t.target[at.Partition])-at.Position)
	}
	return n, t.known
}

// Err returns the error with which the last Run ended, or that no broker answers; nil while
// Run works.
func (t *Tail) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil && t.link != nil {
		if outage := t.link.outage(); outage != "" {
			return fmt.Errorf("reading topic %s: %s", t.topic, outage)
		}
	}
	return t.err
}

// Follow calls Run until the context ends (nil) or an error is of class fatal. After any
// other error it waits, from 100 ms up to 5 s, and continues; retry is called before the
// wait.
func (t *Tail) Follow(ctx context.Context, f func(*pipeline.Record) error, retry func(err error, wait time.Duration)) error {
	for wait := minBackoff; ; wait = sleep(ctx, wait) {
		err := t.Run(ctx, f)
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			return err
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		retry(err, wait)
	}
}

// Run calls f with each record, in order within a partition. The record and its
// bytes are valid only during the call. Run returns nil when the context ends, else
// the error of f or of reading the topic. It may then be called again, and continues
// after the last record that f took without an error.
func (t *Tail) Run(ctx context.Context, f func(*pipeline.Record) error) (err error) {
	taking := false
	defer func() {
		err = trimDial(err)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.err, t.taking, t.link = err, taking, nil
	}()
	cl, err := t.newClient()
	if err != nil {
		return &pipeline.FatalError{Err: err}
	}
	defer cl.Close()
	from, err := t.startOffsets(ctx, cl)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading topic %s: %w", t.topic, err)
	}
	taking = true
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{t.topic: from})
	defer t.progress.watchEndsWith(ctx, cl)()
	check := time.Now().Add(min(t.recheck, 2*fetchWait)) // an idle topic shows soon that it can be read
	for {
		poll, cancel := context.WithDeadline(ctx, check)
		fetches := cl.PollFetches(poll)
		due := poll.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if due {
			if err := t.checkPartitions(ctx, cl, len(from)); err != nil {
				return err
			}
			check = time.Now().Add(t.recheck)
			fetches = withoutDeadline(fetches)
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading topic %s: %w", t.topic, err)
		}
		if err := t.takeAll(fetches, f); err != nil {
			return err
		}
		t.works()
	}
}

func (t *Tail) works() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = nil
}

func (t *Tail) newClient() (*kgo.Client, error) {
	opts, err := t.cfg.Options()
	if err != nil {
		return nil, err
	}
	link := newLink()
	t.mu.Lock()
	t.link = link
	t.mu.Unlock()
	return kgo.NewClient(append(opts,
		kgo.WithHooks(link),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // see session.fetchOptions
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxBytes(16<<20),
		kgo.MetadataMinAge(250*time.Millisecond), // refresh soon after a leader moved
	)...)
}

// checkPartitions returns an error if the topic has more than n partitions. If the
// partitions cannot be listed it returns nil: the next check tries again.
func (t *Tail) checkPartitions(ctx context.Context, cl *kgo.Client, n int) error {
	starts, err := kadm.NewClient(cl).ListStartOffsets(ctx, t.topic)
	if err == nil && len(starts[t.topic]) > n {
		return fmt.Errorf("topic %s now has %d partitions instead of %d: starting to read it again", t.topic, len(starts[t.topic]), n)
	}
	return nil
}

// withoutDeadline removes the error that only reports the deadline of the poll.
func withoutDeadline(fetches kgo.Fetches) (out kgo.Fetches) {
	for _, f := range fetches {
		if len(f.Topics) != 1 || len(f.Topics[0].Partitions) != 1 || !errors.Is(f.Topics[0].Partitions[0].Err, context.DeadlineExceeded) {
			out = append(out, f)
		}
	}
	return out
}

// startOffsets returns the offsets to read from, by partition. The first call also
// sets the targets.
func (t *Tail) startOffsets(ctx context.Context, cl *kgo.Client) (map[int32]kgo.Offset, error) {
	if err := t.checkTopic(ctx, cl); err != nil {
		return nil, err
	}
	adm := kadm.NewClient(cl)
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
	// The high watermarks, not the last stable offsets: records in a transaction
	// that is still open are part of the target.
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
		t.target = map[int32]int64{}
	}
	from := map[int32]kgo.Offset{}
	for p, start := range starts[t.topic] {
		end, _ := ends.Lookup(t.topic, p)
		at := t.progress.of(t.topic, p)
		if at.Position > end.Offset {
			return nil, pipeline.Fatal("partition %d ends at offset %d, but was read up to %d: %w, or truncated; restart to read it from its start", p, end.Offset, at.Position, ErrRecreated)
		}
		at.Position = max(at.Position, start.Offset)
		t.progress.assigned(PartitionProgress{Topic: t.topic, Partition: p, Position: at.Position, End: at.End})
		if first {
			t.target[p] = end.Offset
		}
		from[p] = kgo.NewOffset().At(at.Position)
	}
	if len(from) == 0 {
		t.target = nil
		return nil, errors.New("it does not exist")
	}
	t.known = true
	if !t.taking {
		t.err = nil
	}
	t.closeIfLoaded()
	return from, nil
}

// checkTopic returns a fatal error if the topic is another one than at the first call.
func (t *Tail) checkTopic(ctx context.Context, cl *kgo.Client) error {
	now, err := topicInfos(ctx, cl, map[string]TopicInfo{t.topic: {}})
	if err != nil {
		return err
	}
	is, ok := now[t.topic]
	if !ok {
		return nil // the caller reports it
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.id == "" {
		t.id = is.ID
	}
	if t.id != is.ID {
		return pipeline.Fatal("%w: its id was %s and is %s; restart to read it from its start", ErrRecreated, t.id, is.ID)
	}
	return nil
}

// takeAll passes the fetched records to f.
func (t *Tail) takeAll(fetches kgo.Fetches, f func(*pipeline.Record) error) error {
	for _, fetch := range fetches {
		for _, topic := range fetch.Topics {
			for i := range topic.Partitions {
				if err := t.take(&topic.Partitions[i], f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// take passes the records of one partition to f, and updates the position.
func (t *Tail) take(p *kgo.FetchPartition, f func(*pipeline.Record) error) (err error) {
	var in pipeline.Record
	next := int64(-1)
	for _, r := range p.Records {
		if !r.Attrs.IsControl() {
			in = pipeline.Record{Topic: t.topic, Partition: p.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: in.Headers[:0], Time: readTime(r.Timestamp)}
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
	tp := topicPartition{t.topic, p.Partition}
	if next >= 0 {
		t.progress.committed(tp, readTo{next: next, end: p.LastStableOffset})
	}
	t.progress.ends(tp, p.LastStableOffset)
	t.closeIfLoaded()
	return err
}

// closeIfLoaded closes loaded once every partition has reached its target. The caller
// holds the lock.
func (t *Tail) closeIfLoaded() {
	select {
	case <-t.loaded:
		return
	default:
	}
	for p, target := range t.target {
		if t.progress.of(t.topic, p).Position < target {
			return
		}
	}
	close(t.loaded)
}
